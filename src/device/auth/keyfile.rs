//! The file of keys, and the file that seals them.
//!
//! A token is kept as its hash. The secret of an HMAC has to be known to be checked; it is
//! sealed under a key in a file of its own, so that the file of keys (in a backup, say)
//! gives nothing away without that one.

use super::proof::{Key, Keys, Material, Secret, TokenHash};
use crate::config;
use crate::files::{Locked, Stamp, read_secret};
use crate::model::{Timestamp, Token, stray_in_devices};
use anyhow::{Context, Result, anyhow, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Some 20,000 keys.
const MOST_BYTES: u64 = 8 << 20;
/// 64 hexadecimal digits, and what an editor puts behind them.
const MOST_SEALING_BYTES: u64 = 80;
/// Patterns of one key.
const MOST_PATTERNS: usize = 64;
/// Of one pattern, in bytes.
const LONGEST_PATTERN: usize = 256;
const HEADER: &str = "# Keys of devices, written by `tidegate key`. The gateway reads this file when it changes.\n";

/// Where keys are.
#[derive(Debug, Clone)]
pub struct KeyFiles {
    pub keys: PathBuf,
    pub sealing: PathBuf,
}

/// What the files were like when they were read.
pub type Stamps = [Option<Stamp>; 2];

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    #[serde(default)]
    key: Vec<Entry>,
}

/// What is told of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    pub kind: &'static str,
    pub created: String,
    pub devices: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    devices: Vec<String>,
    created: String,
    /// Of a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
    /// Of an HMAC's secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    sealed: Option<String>,
}

impl KeyFiles {
    /// Where the configuration says they are.
    pub fn of(devices: &config::Devices, store: &config::Store) -> KeyFiles {
        let keys = devices.keys_file.clone().unwrap_or_else(|| store.directory.join("keys"));
        let sealing = devices.sealing_key_file.clone().unwrap_or_else(|| keys.with_file_name("sealing-key"));
        KeyFiles { keys, sealing }
    }

    pub fn stamps(&self) -> Stamps {
        [Stamp::of(&self.keys), Stamp::of(&self.sealing)]
    }

    /// All keys.
    ///
    /// # Errors
    /// If a file cannot be read, others may read it, or something in it makes no sense.
    pub fn read(&self) -> Result<Vec<Key>> {
        let content = self.content()?;
        let sealing = self.sealing_of(&content)?;
        content.key.into_iter().map(|entry| self.opened(entry, sealing.as_ref())).collect()
    }

    /// What is told of all keys. Needs no sealing key.
    ///
    /// # Errors
    /// If the file cannot be read, or others may read it.
    pub fn list(&self) -> Result<Vec<Listed>> {
        let listed = |entry: Entry| Listed {
            kind: if entry.sealed.is_some() { "hmac" } else { "token" },
            name: entry.name,
            devices: entry.devices,
            created: entry.created,
        };
        Ok(self.content()?.key.into_iter().map(listed).collect())
    }

    fn opened(&self, entry: Entry, sealing: Option<&Sealing>) -> Result<Key> {
        let name = entry.name.clone();
        let key = entry.open(sealing);
        key.with_context(|| format!("key {name:?} in {} cannot be used", self.keys.display()))
    }

    /// What the keys are sealed under; none if none is.
    fn sealing_of(&self, content: &Content) -> Result<Option<Sealing>> {
        if content.key.iter().all(|entry| entry.sealed.is_none()) {
            return Ok(None);
        }
        match read_secret(&self.sealing, MOST_SEALING_BYTES) {
            Ok(bytes) => Sealing::parse(&bytes, &self.sealing).map(Some),
            Err(why) if why.is_missing() => {
                let keys = self.keys.display();
                bail!("{why}, but keys in {keys} are sealed under what was there; put it back, or revoke those keys")
            }
            Err(why) => Err(why.into()),
        }
    }

    /// As [`KeyFiles::read`], for looking them up.
    ///
    /// # Errors
    /// The same.
    pub fn load(&self) -> Result<Keys> {
        Ok(Keys::new(self.read()?))
    }

    fn content(&self) -> Result<Content> {
        let bytes = read_secret(&self.keys, MOST_BYTES).map_err(|why| match why.is_missing() {
            true => anyhow!("{why}; make a key with `tidegate key new`"),
            false => anyhow!(why),
        })?;
        let text = std::str::from_utf8(&bytes).with_context(|| format!("{} is no text", self.keys.display()))?;
        toml::from_str(text).map_err(|why| {
            // The message alone: the text around it may hold a secret.
            let keys = self.keys.display();
            anyhow!("{keys} is no file of keys: {}; restore it, or remove it and make keys anew", why.message())
        })
    }

    /// Adds a key to the file, which is created if it is not there, as is the sealing key
    /// if that is needed.
    ///
    /// # Errors
    /// If there is a key of that name, or a file cannot be used.
    pub fn add(&self, key: &Key) -> Result<()> {
        check(&key.name, &key.devices)?;
        self.change(|content| {
            if content.key.iter().any(|entry| entry.name == key.name) {
                bail!("there is a key {:?} already; revoke it first, or choose another name", key.name);
            }
            let mut entry = Entry {
                name: key.name.clone(),
                devices: key.devices.clone(),
                created: key.created.to_string(),
                hash: None,
                sealed: None,
            };
            match &key.material {
                Material::Token(TokenHash(hash)) => entry.hash = Some(hex(hash)),
                Material::Hmac(secret) => {
                    // Keys under two sealing keys could not be used together.
                    let sealing = match self.sealing_of(content)? {
                        Some(sealing) => {
                            for entry in &content.key {
                                self.opened(entry.clone(), Some(&sealing))?;
                            }
                            sealing
                        }
                        None => Sealing::read_or_create(&self.sealing)?,
                    };
                    entry.sealed = Some(BASE64_STANDARD.encode(sealing.seal(secret, &key.name)?));
                }
            }
            content.key.push(entry);
            Ok(())
        })
    }

    /// Takes the key `name` out of the file. Needs no sealing key.
    ///
    /// # Errors
    /// If there is none, or the file cannot be used.
    pub fn revoke(&self, name: &str) -> Result<()> {
        self.content()?; // a file that is not there is not to be created
        self.change(|content| {
            let before = content.key.len();
            content.key.retain(|entry| entry.name != name);
            if content.key.len() == before {
                bail!("there is no key {name:?}; `tidegate key list` shows them");
            }
            Ok(())
        })
    }

    fn change(&self, change: impl FnOnce(&mut Content) -> Result<()>) -> Result<()> {
        let file = Locked::open(&self.keys).with_context(|| format!("cannot open {}", self.keys.display()))?;
        let mut content = self.content()?;
        change(&mut content)?;
        let text = toml::to_string(&content).context("cannot write the keys as TOML")?;
        let bytes = [HEADER, &text].concat().into_bytes();
        if bytes.len() as u64 > MOST_BYTES {
            bail!("{} would be larger than {MOST_BYTES} bytes: no more keys fit", self.keys.display());
        }
        file.replace(&bytes).with_context(|| format!("cannot write {}", self.keys.display()))
    }
}

impl Entry {
    fn open(self, sealing: Option<&Sealing>) -> Result<Key> {
        check(&self.name, &self.devices)?;
        let created = self.created.parse::<Timestamp>().map_err(|why| anyhow!("created: {why}"))?;
        let material = match (&self.hash, &self.sealed, sealing) {
            (Some(hash), None, _) => Material::Token(TokenHash(from_hex(hash).context("hash: no 64 hex digits")?)),
            (None, Some(sealed), Some(sealing)) => {
                let bytes = BASE64_STANDARD.decode(sealed).map_err(|_| anyhow!("sealed: no base64"))?;
                Material::Hmac(sealing.open(bytes, &self.name)?)
            }
            _ => bail!("it has neither a hash nor a sealed secret, or both"),
        };
        Ok(Key { name: self.name, devices: self.devices, created, material })
    }
}

/// Whether a key may be called and bound like that.
fn check(name: &str, devices: &[String]) -> Result<()> {
    if let Err(why) = Token::check(name) {
        bail!("the key name {name:?} {why}: give 1 to 64 letters, digits, '.', '_' or '-'");
    }
    if devices.is_empty() || devices.len() > MOST_PATTERNS {
        bail!("a key has 1 to {MOST_PATTERNS} patterns of devices, not {}", devices.len());
    }
    if let Some(pattern) = devices.iter().find(|p| p.is_empty() || p.len() > LONGEST_PATTERN) {
        bail!("the pattern {pattern:?} matches no device: give 1 to {LONGEST_PATTERN} bytes");
    }
    if let Some((pattern, stray)) = devices.iter().find_map(|p| Some((p, stray_in_devices(p)?))) {
        bail!("the pattern {pattern:?} matches no device: no name contains {stray:?}");
    }
    Ok(())
}

/// What HMAC secrets are sealed under.
struct Sealing(LessSafeKey);

impl Sealing {
    fn parse(bytes: &[u8], path: &Path) -> Result<Sealing> {
        let text = std::str::from_utf8(bytes).unwrap_or_default().trim_ascii();
        let key = from_hex(text).with_context(|| format!("{} does not hold 64 hex digits", path.display()))?;
        let key = UnboundKey::new(&AES_256_GCM, &key).map_err(|_| anyhow!("a sealing key of 32 bytes is refused"))?;
        Ok(Sealing(LessSafeKey::new(key)))
    }

    fn read_or_create(path: &Path) -> Result<Sealing> {
        if let Some(sealing) = Sealing::read_if_there(path)? {
            return Ok(sealing);
        }
        let file = Locked::open(path).with_context(|| format!("cannot create {}", path.display()))?;
        // Another process, with keys in another file, may have made it meanwhile.
        if let Some(sealing) = Sealing::read_if_there(path)? {
            return Ok(sealing);
        }
        let key = random()?;
        file.replace(format!("{}\n", hex(&key)).as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
        Sealing::read_if_there(path)?.with_context(|| format!("{} is gone again", path.display()))
    }

    /// `None` if there is none. A crash may have left the file empty: nothing was ever
    /// sealed under it.
    fn read_if_there(path: &Path) -> Result<Option<Sealing>> {
        match read_secret(path, MOST_SEALING_BYTES) {
            Ok(bytes) if bytes.is_empty() => Ok(None),
            Ok(bytes) => Sealing::parse(&bytes, path).map(Some),
            Err(why) if why.is_missing() => Ok(None),
            Err(why) => Err(why.into()),
        }
    }

    /// The secret of the key `name`, which it can be opened as only.
    fn seal(&self, secret: &Secret, name: &str) -> Result<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).context("the system has no random numbers")?;
        let mut sealed = secret.0.to_vec();
        self.0
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(name), &mut sealed)
            .map_err(|_| anyhow!("the secret cannot be sealed"))?;
        Ok([&nonce[..], &sealed].concat())
    }

    fn open(&self, sealed: Vec<u8>, name: &str) -> Result<Secret> {
        let (nonce, sealed) = sealed.split_first_chunk().context("sealed: too short")?;
        let mut sealed = sealed.to_vec();
        let opened =
            self.0.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(name), &mut sealed).map_err(|_| {
                anyhow!("it was sealed under another sealing key, or damaged; put that one back, or revoke this key")
            })?;
        Ok(Secret((*opened).try_into().context("sealed: not 32 bytes")?))
    }
}

/// 32 random bytes.
///
/// # Errors
/// If the system has none.
pub fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).context("the system has no random numbers")?;
    Ok(bytes)
}

/// Bytes as two hexadecimal digits each.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that 64 hexadecimal digits stand for.
pub fn from_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn files() -> (TempDir, KeyFiles) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |name| directory.path().join(name);
        let files = KeyFiles { keys: path("keys"), sealing: path("sealing-key") };
        (directory, files)
    }

    fn key(name: &str, material: Material) -> Key {
        Key { name: name.into(), devices: vec!["pump-*".into()], created: Timestamp(1_000_000), material }
    }

    fn hmac(name: &str) -> Key {
        key(name, Material::Hmac(Secret(random().expect("random numbers"))))
    }

    #[test]
    fn keys_are_read_as_they_were_added_and_their_secrets_are_not_in_the_file() {
        let (_directory, files) = files();
        assert!(files.read().expect_err("no file").to_string().contains("tidegate key new"));
        let secret = Secret(random().expect("random numbers"));
        let keys = [hmac("a"), key("b", Material::Token(secret.token_hash())), hmac("c")];
        keys.iter().for_each(|key| files.add(key).expect("a new key"));
        assert_eq!(files.read().expect("keys"), keys);
        let text = std::fs::read_to_string(&files.keys).expect("text");
        let Material::Hmac(a) = &keys[0].material else { unreachable!() };
        assert!(!text.contains(&hex(&secret.0)) && !text.contains(&hex(&a.0)), "{text}");
        assert!(!text.contains(&BASE64_STANDARD.encode(a.0)), "{text}");

        assert!(files.add(&hmac("a")).expect_err("the name is taken").to_string().contains("revoke it first"));
        files.revoke("a").expect("it is there");
        assert!(files.revoke("a").is_err());
        assert_eq!(files.read().expect("keys"), keys[1..]);
    }

    #[test]
    fn a_secret_opens_under_its_sealing_key_and_its_name_only() {
        let (_directory, files) = files();
        files.add(&hmac("a")).expect("a new key");
        let sealing = std::fs::read(&files.sealing).expect("it was created");
        let text = std::fs::read_to_string(&files.keys).expect("text");
        let replace = |path: &Path, content: &[u8]| std::fs::write(path, content).expect("a file");

        replace(&files.keys, text.replace("\"a\"", "\"b\"").as_bytes());
        assert!(format!("{:#}", files.read().expect_err("another name")).contains("another sealing key"));
        replace(&files.keys, text.as_bytes());
        assert!(files.read().is_ok());
        replace(&files.sealing, hex(&[1; 32]).as_bytes());
        assert!(format!("{:#}", files.read().expect_err("another key")).contains("another sealing key"));
        replace(&files.sealing, b"short");
        assert!(format!("{:#}", files.read().expect_err("no key")).contains("64 hex digits"));
        // Another key under another sealing key would be of no use, nor would the first be.
        for lost in [true, false] {
            if lost {
                std::fs::remove_file(&files.sealing).expect("it is there");
            } else {
                replace(&files.sealing, hex(&[1; 32]).as_bytes());
                std::fs::set_permissions(&files.sealing, std::os::unix::fs::PermissionsExt::from_mode(0o600))
                    .expect("a mode");
            }
            let why = format!("{:#}", files.add(&hmac("b")).expect_err("it is not that one"));
            assert!(why.contains("sealing") && why.contains("put ") && why.contains("revoke "), "{why}");
            assert!(lost != files.sealing.exists());
            assert_eq!(files.list().expect("names")[0].name, "a");
        }
        std::fs::remove_file(&files.sealing).expect("it is there");
        assert!(format!("{:#}", files.read().expect_err("no key")).contains("sealing-key"));
        replace(&files.sealing, &sealing);
        assert!(files.load().expect_err("others may read it").to_string().contains("chmod 600"));
    }

    #[test]
    fn several_files_of_keys_may_share_a_sealing_key_from_the_first_on() {
        let (directory, files) = files();
        let all: Vec<_> = (0..8)
            .map(|n| {
                let files = KeyFiles { keys: directory.path().join(n.to_string()), sealing: files.sealing.clone() };
                std::thread::spawn(move || {
                    files.add(&hmac("a")).expect("a new key");
                    files
                })
            })
            .collect();
        for files in all.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>() {
            assert_eq!(files.read().expect("its key can be opened").len(), 1);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_without_showing_it() {
        let (_directory, files) = files();
        files.add(&hmac("a")).expect("a new key");
        let good = std::fs::read_to_string(&files.keys).expect("text");
        for (from, to) in [
            ("sealed = ", "secret = "),
            ("sealed = \"", "sealed = \"!"),
            ("created = \"1970", "created = \"x"),
            ("name = \"a\"", "name = \"a b\""),
            ("[\"pump-*\"]", "[]"),
            ("[\"pump-*\"]", "[\"\"]"),
            ("sealed = ", "hash = \"00\"\nsealed = "),
            ("[[key]]", "[[key"),
            ("[[key]]", "\u{0}"),
        ] {
            let bad = good.replace(from, to);
            assert_ne!(bad, good, "{from}");
            std::fs::write(&files.keys, &bad).expect("a file");
            let why = format!("{:#}", files.read().expect_err(&bad));
            assert!(why.contains("keys") && !why.contains("sealed = "), "{why}");
        }
        std::fs::write(&files.keys, "").expect("a file");
        assert_eq!(files.read().expect("no keys"), []);
        assert!(files.add(&key("a b", Material::Token(TokenHash([0; 32])))).is_err());
    }

    #[test]
    fn hexadecimal_digits_are_read_as_they_are_written() {
        let bytes = random().expect("random numbers");
        assert_eq!(from_hex(&hex(&bytes)), Some(bytes));
        for bad in ["", "0", &"g".repeat(64), &"+f".repeat(32), &"ä".repeat(32), &"0".repeat(66)] {
            assert_eq!(from_hex(bad), None, "{bad}");
        }
    }
}
