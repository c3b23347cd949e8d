//! What an operator is told: what is wrong, where, and what to do, in the program's own words.

use crate::support::script::{Manners, Script};
use crate::support::subscriber::options;
use crate::support::tls::Certificates;
use crate::support::{installed, real_services_are_required};
use std::fs::{self, read_dir, read_to_string};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;
use tidegate::mqtt::{self, Connection, Event, Options, Publish, TlsFiles, Version};
use tidegate::wire::codec::decode_device;
use tidegate::wire::frame::{self, BodyEncoding, Format, FrameError, FrameRef};

const TCP: &str = "[[tcp]]\n";
const MQTT: &str = "[[mqtt]]\nbrokers = ['mqtt://localhost']\n";

/// What `tidegate check` says of this configuration, and its exit code.
fn check(directory: &Path, text: &str) -> (Option<i32>, String) {
    let file = directory.join("tidegate.toml");
    fs::write(&file, text).expect("the file is written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let Output { status, stdout, stderr } = command.args(["check", "-c"]).arg(&file).output().expect("it runs");
    let said = [stdout, stderr].concat();
    (status.code(), String::from_utf8_lossy(&said).replace(&format!("{}", file.display()), "FILE"))
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// A configuration that is right but for `lines` in `section`.
fn with(section: &str, lines: &str) -> String {
    match section {
        "tcp" => format!("{MQTT}{TCP}{lines}\n"),
        "mqtt" if lines.contains("brokers") || lines.contains("host") => format!("{TCP}[[mqtt]]\n{lines}\n"),
        "mqtt" => format!("{TCP}{MQTT}{lines}\n"),
        "serial" => format!("{MQTT}[[serial]]\n{lines}\n"),
        "" => format!("{lines}\n{TCP}{MQTT}"),
        _ => format!("{TCP}{MQTT}[{section}]\n{lines}\n"),
    }
}

#[test]
fn every_mistake_is_named_in_plain_words_with_its_place_and_remedy() {
    let directory = directory();
    let place = directory.path().display().to_string();
    let (file, in_file) = (format!("{place}/file"), format!("{place}/file/log"));
    fs::write(&file, "").expect("a file");
    let cases: &[(&str, String, &str, &str, &str)] = &[
        ("store", "max_size = '1 gig'".into(), "store.max_size", "\"1 gig\" is not a size", "max_size = \"1GiB\""),
        ("store", "max_size = -5".into(), "store.max_size", "-5 is not a size", "max_size = \"1GiB\""),
        ("store", "max_size = 1.5".into(), "store.max_size", "1.5 is not a size", "KiB, MiB or GiB"),
        (
            "mqtt",
            "keep_alive = 'soon'".into(),
            "mqtt[0].keep_alive",
            "\"soon\" is not a duration",
            "keep_alive = \"30s\"",
        ),
        ("mqtt", "window = 'many'".into(), "mqtt[0].window", "is not a whole number from 0 to 65535", "window = 32"),
        ("http", "enabled = 'yes'".into(), "http.enabled", "\"yes\" is neither true nor false", "enabled = true"),
        ("store", "history_within = 'never'".into(), "store.history_within", "neither a duration nor \"off\"", "like"),
        ("mqtt", "max_size = '1GiB'".into(), "mqtt[0].max_size", "unknown key `max_size`", "move it to [store]"),
        ("store", "listen = '127.0.0.1:1'".into(), "store.listen", "unknown key", "move it to [[tcp]] or [http]"),
        ("", "id = 'gw'".into(), "id", "unknown section `id`", "move it to [gateway]"),
        ("mqtt", "brokers = [' mqtt://localhost']".into(), "mqtt[0].brokers[0]", "a blank stands before", "remove it"),
        ("mqtt", "brokers = ['MQTT://a']".into(), "mqtt[0].brokers[0]", "not in small letters", "mqtt://HOST"),
        (
            "mqtt",
            "host = 'broker'".into(),
            "mqtt[0].host",
            "unknown key `host`",
            "write brokers = [\"mqtt://HOST:PORT\"]",
        ),
        ("tcp", "port = 7411".into(), "tcp[0].port", "unknown key `port`", "write listen = \"ADDRESS:PORT\""),
        ("tcp", "listen = 'localhost:7411'".into(), "tcp[0].listen", "is a name", "listen = \"127.0.0.1:7411\""),
        ("tcp", "listen = '::1:7411'".into(), "tcp[0].listen", "stands in brackets", "listen = \"[::1]:7411\""),
        ("tcp", "listen = ':7411'".into(), "tcp[0].listen", "the address is missing", "0.0.0.0:7411"),
        ("tcp", "listen = '192.168.1.300:7411'".into(), "tcp[0].listen", "four numbers from 0 to 255", "127.0.0.1"),
        ("mqtt", "brokers = ['mqtt://192.168.1.300']".into(), "mqtt[0].brokers[0]", "from 0 to 255", "correct"),
        ("serial", format!("path = '{file}'"), "serial[0].path", "is no serial port, but a file", "link list"),
        ("serial", format!("path = '{place}'"), "serial[0].path", "is no serial port, but a directory", "link list"),
        ("serial", "path = 'ttyUSB0'".into(), "serial[0].path", "is no absolute path", "/dev/ttyUSB0"),
        ("store", "directory = '~/data'".into(), "store.directory", "stands for no home directory", "the whole path"),
        (
            "store",
            format!("directory = '{in_file}'"),
            "store.directory",
            "is a file, not a directory",
            "give a directory",
        ),
    ];
    for (section, lines, key, what, fix) in cases {
        let (code, said) = check(directory.path(), &with(section, lines));
        let place = said.split(' ').next().is_some_and(|start| start.starts_with("FILE:") && start.len() > 6);
        assert!(code == Some(2) && said.lines().count() == 1 && place, "{lines}: {said}");
        assert!(said.contains(&format!(" {key}: ")) && said.contains(what) && said.contains(fix), "{lines}: {said}");
        for raw in ["parsable", "overflow", "expected", "invalid type", "invalid value", "os error"] {
            assert!(!said.contains(raw), "{lines}: {said}");
        }
    }
}

#[test]
fn certificates_and_keys_that_cannot_be_used_are_told_apart() {
    if installed("openssl").is_none() {
        assert!(!real_services_are_required(), "openssl is not installed");
        return;
    }
    let directory = directory();
    let openssl = |arguments: &str| {
        let mut command = Command::new("openssl");
        let output = command.args(arguments.split(' ')).current_dir(directory.path()).output().expect("it runs");
        assert!(output.status.success(), "{arguments}: {output:?}");
    };
    openssl("req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -subj /CN=a -days 300");
    openssl("genpkey -algorithm RSA -out other.pem");
    openssl("pkcs8 -topk8 -v2 aes256 -passout pass:x -in key.pem -out encrypted.pem");
    openssl("rsa -aes256 -traditional -passout pass:x -in key.pem -out traditional.pem");
    openssl("req -new -key key.pem -subj /CN=a -out request.pem");
    openssl("x509 -req -in request.pem -signkey key.pem -out v1.pem -days 300");
    let at = |name: &str| directory.path().join(name).display().to_string();
    let pem = fs::read_to_string(at("cert.pem")).expect("a file");
    fs::write(at("cut.pem"), &pem[..pem.len() / 2]).expect("a file");
    let is_v1 = {
        let mut shown = Command::new("openssl");
        let shown = shown.args(["x509", "-noout", "-text", "-in", &at("v1.pem")]).output().expect("it runs");
        String::from_utf8_lossy(&shown.stdout).contains("Version: 1 ")
    };
    let cases = [
        ("cert.pem", "encrypted.pem", "is encrypted", "openssl pkey -in"),
        ("cert.pem", "traditional.pem", "is encrypted", "openssl pkey -in"),
        ("cert.pem", "other.pem", "do not go together", "give the key"),
        ("v1.pem", "key.pem", "X.509 version 1", "make one of version 3"),
        ("cut.pem", "key.pem", "ends in the midst", "copy it once more"),
    ];
    for (cert, key, what, fix) in cases.into_iter().filter(|(cert, ..)| is_v1 || *cert != "v1.pem") {
        let lines = format!("cert_file = '{}'\nkey_file = '{}'", at(cert), at(key));
        let (code, said) = check(directory.path(), &with("tcp", &lines));
        assert!(code == Some(2) && said.contains(what) && said.contains(fix), "{cert} {key}: {said}");
        assert!(said.starts_with("FILE:4: tcp[0]."), "{said}");
        for raw in ["InvalidCertificate", "UnsupportedCertVersion", "KeyMismatch", "keys may not", "NoItemsFound"] {
            assert!(!said.contains(raw), "{said}");
        }
    }
    let own = Certificates::new();
    let (code, said) = check(directory.path(), &with("tcp", &own.listener()));
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn what_a_device_sends_wrong_is_named_so_that_it_can_be_mended() {
    let cases = [
        (FrameError::BadMagic(*b"GET "), "got 47 45 54 20: that is HTTP"),
        (FrameError::BadMagic([0x16, 3, 1, 2]), "got 16 03 01 02: that is TLS"),
        (FrameError::BadMagic([0x7f, 0x56, 0x34, 0x12]), "got 7f 56 34 12: its bytes are in reverse order"),
        (FrameError::TooLarge { got: 0x0a00_0000, max: 65_536 }, "now: its bytes are in reverse order"),
        (FrameError::Checksum { expected: 0x1234_5678, got: 0x7856_3412 }, "5678: its bytes are in reverse order"),
    ];
    for (error, words) in cases {
        assert!(error.to_string().contains(words), "{error}");
    }
    for other in [FrameError::TooLarge { got: 70_000, max: 65_536 }, FrameError::Checksum { expected: 1, got: 2 }] {
        assert!(!other.to_string().contains("reverse"), "{other}");
    }
    let format = Format { version: frame::Version::V2, encoding: BodyEncoding::Json };
    let said = |kind: u8| {
        let why = decode_device(&FrameRef { format, kind, body: b"{}" }).expect_err("it is none");
        why.to_string()
    };
    assert!(
        said(0x83).starts_with("message type 0x93 is unknown here: its bit 7 says that a gateway"),
        "{}",
        said(0x83)
    );
    assert_eq!(said(0x0f), "message type 0x1f is unknown here");
    let postcard = Format { version: frame::Version::V2, encoding: BodyEncoding::Postcard };
    let why = decode_device(&FrameRef { format: postcard, kind: 3, body: &[1, 0, 1, 2] }).expect_err("it is cut");
    assert_eq!(why.to_string(), "the body is not a valid Readings: samples, byte 4 of 4: the body ends there");
}

#[tokio::test]
async fn a_broker_of_the_other_kind_is_recognised_and_a_refused_publish_names_its_topic() {
    let certificates = Certificates::new();
    let secure = Script::start(Manners { tls: Some(certificates.acceptor()), ..Manners::default() }).await;
    let plain = Script::start(Manners::default()).await;
    let files = TlsFiles { ca: Some(certificates.path("ca.pem")), ..TlsFiles::default() };
    let tls = Some(std::sync::Arc::new(mqtt::client_config(&files).expect("an authority")));
    for version in [Version::V3_1_1, Version::V5] {
        let failure = async |options: Options| match Connection::open(&options).await {
            Ok(_) => panic!("it is connected"),
            Err(failure) => failure.to_string(),
        };
        let said = failure(Options { version, ..options(secure.port) }).await;
        assert!(said.contains("if that port is for TLS, write mqtts://"), "{version:?}: {said}");
        let said = failure(Options { version, tls: tls.clone(), ..options(plain.port) }).await;
        assert!(!said.contains("Mqtt state") && !said.contains("I/O"), "{version:?}: {said}");
        let said = failure(Options { version, ..options(1) }).await;
        assert_eq!(said, "127.0.0.1:1: nothing listens there");
    }
    let strict = Script::start(Manners { v5: true, refuses_publishes: true, ..Manners::default() }).await;
    let mut connection =
        Connection::open(&Options { version: Version::V5, ..options(strict.port) }).await.expect("it is");
    let (topic, payload) = ("plant/readings".to_owned(), "{}".into());
    let publish = Publish { topic, payload, retain: false, content_type: "application/json", encoding: "json" };
    connection.publish(7, publish).expect("there is room");
    let Event::Refused(7, failure) = connection.event().await else { panic!("it is not refused") };
    let expected = "the broker refused a publish to plant/readings: this client may not publish to that topic";
    assert_eq!(failure.to_string(), expected);
}

/// Places that print what a library or the system says, each with the reason for it. A name that
/// ends in `/` stands for all files below it.
const RAW: &[(&str, &str)] = &[
    // What names the operating system's own words, behind what was tried and where.
    ("src/config/", "the system's words on a file that the configuration names, with what to do behind them"),
    ("src/files.rs", "the one place where the system's words are made plain; unknown ones pass"),
    ("src/pem.rs", "the one place where TLS's words are made plain; unknown ones pass"),
    (
        "src/store/",
        "SQLite's and the disk's words, behind what the log was doing; the state and the remedy are told apart",
    ),
    ("src/link/serial.rs", "the system's words on a port"),
    ("src/link/serial/", "the system's words on a port, with advice behind them"),
    ("src/link/tcp.rs", "the system's words on a socket"),
    ("src/net/", "the system's words on an address, with what to do behind them"),
    ("src/cli/link/", "the system's words on a port, with advice behind them; what a peer's bytes are wrong in"),
    ("src/http.rs", "the system's words on a socket"),
    ("src/gateway/", "the log's words, which are the program's own, and the system's on a directory"),
    // Errors of the program itself, which are written for who reads them.
    ("src/model/names.rs", "what a name is wrong in, in this program's words"),
    ("src/wire/", "what a message is wrong in: this program's words, or those of the JSON reader with line and column"),
    (
        "src/downlink/",
        "what a command is wrong in: this program's words, or those of the JSON reader with line and column",
    ),
    ("src/device/", "what a device's message or a key's file is wrong in, in this program's words"),
    ("src/sink/", "what a broker refused, in the words of `mqtt::reason` and `mqtt::dial`"),
    ("src/link/", "what a device is refused for, in this program's words"),
    ("src/http/", "what a request is refused for, in this program's words"),
    ("src/mqtt/websocket.rs", "what a broker's frames are wrong in, in this program's words"),
    ("src/credentials.rs", "what `pem` and `config` say of a file"),
    ("src/cli/api.rs", "what the gateway itself answered"),
    ("src/cli/check.rs", "what `pem` says of a certificate"),
    ("src/cli/devices.rs", "why a device left, as the gateway tells it"),
    ("src/logging.rs", "why the gateway cannot run: every cause behind what was tried"),
    ("src/cli/send.rs", "what the words of the command line are wrong in, in this program's words"),
    ("src/cli/subscribe.rs", "what `mqtt::reason`, `mqtt::dial` and names say"),
    ("src/cli/subscribe/", "what a payload of somebody else is wrong in, for who debugs a consumer"),
    ("src/cli/simulate.rs", "what a name is wrong in, in this program's words"),
    ("src/cli/simulate/", "a tool for developers: what the gateway answered, or the system's words on a socket"),
    ("src/cli/demo/", "a tool for developers: the embedded broker's words"),
];

/// What prints an error as its library words it.
const PRINTS: [&str; 7] = ["{why}", "{why:#}", "{error}", "{error:#}", "%why", "%error", "error(transparent)"];

#[test]
fn no_library_s_error_is_passed_on_raw_but_where_that_is_meant() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut used = vec![false; RAW.len()];
    let mut stray = Vec::new();
    for file in sources(&root.join("src")) {
        let name = file.strip_prefix(root).expect("it is below").display().to_string();
        let text = read_to_string(&file).expect("a file");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (line, said) in prints(code) {
            // The nearest reason counts.
            let reason = RAW
                .iter()
                .enumerate()
                .filter(|(_, (place, _))| name == *place || (place.ends_with('/') && name.starts_with(place)));
            match reason.max_by_key(|(_, (place, _))| place.len()) {
                Some((at, _)) => used[at] = true,
                None => stray.push(format!("{name}:{line}: {said}")),
            }
        }
    }
    assert!(stray.is_empty(), "say it in plain words, or give a reason in RAW:\n{}", stray.join("\n"));
    let unused: Vec<&str> = RAW.iter().zip(used).filter(|(_, used)| !used).map(|((place, _), _)| *place).collect();
    assert!(unused.is_empty(), "these need no reason any more: {unused:?}");
}

#[test]
fn a_raw_error_is_noticed_wherever_it_is_printed() {
    let code = "fn f() {\n    bail!(\"cannot read {file}: {why}\");\n    tracing::warn!(%why, \"failed\");\n}\n";
    assert_eq!(prints(code).map(|(line, _)| line).collect::<Vec<_>>(), [2, 3]);
    let quiet = "    // {why}\n    tracing::debug!(%why, \"for developers\");\n    let x = \"{what}\";\n";
    assert_eq!(prints(quiet).count(), 0);
}

/// The lines that print an error, but for what only developers see.
fn prints(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = code.lines().enumerate().map(|(n, line)| (n + 1, line.trim()));
    lines.filter(|(_, line)| {
        let shown = !line.starts_with("//") && !line.contains("tracing::debug!") && !line.contains("tracing::trace!");
        let plain = line.contains("= plain(");
        let turned = line.contains("why.to_string()") || line.contains("error.to_string()");
        shown && !plain && (turned || PRINTS.iter().any(|print| line.contains(print)))
    })
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => sources(&path),
            false => vec![path],
        })
        .filter(|path| path.extension().is_some_and(|it| it == "rs") && !path.ends_with("tests.rs"))
        .collect()
}
