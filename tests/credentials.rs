//! Secrets and certificates that come late, are replaced, expire, or are not for whoever asks.

use crate::support::broker::Broker;
use crate::support::device::{POSTCARD, Talk, hello};
use crate::support::gateway::Gateway;
use crate::support::tls::Certificates;
use crate::support::{eventually, free_port};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TOKEN: &str = "0123456789abcdef";
/// Somebody who owns nothing.
const NOBODY: u32 = 65_534;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn tidegate(arguments: &[&str], config: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(arguments).arg("-c").arg(config).env_remove("CREDENTIALS_DIRECTORY").output().expect("the binary runs")
}

/// As [`tidegate`], as somebody for whom files of mode 0 are closed. The program is linked or
/// copied to where everybody may run it.
fn tidegate_as_nobody(arguments: &[&str], config: &Path, directory: &Path) -> Output {
    let program = directory.join("tidegate-of-nobody");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_tidegate"), &program).expect("a copy");
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).expect("a mode");
    }
    let mut command = Command::new(program);
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.args(arguments).arg("-c").arg(config).output().expect("the binary runs")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

async fn ask(gateway: &Gateway, path: &str) -> String {
    let mut stream = TcpStream::connect(gateway.http_address()).await.expect("it listens");
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}

#[tokio::test]
async fn what_comes_late_is_waited_for_while_devices_on_other_links_are_served() {
    let broker = Broker::start().await;
    let certificates = Certificates::new();
    let mut gateway = Gateway::with_broker(&broker.url(), "");
    let late = |name: &str| gateway.directory().join(name);
    let (password, token, cert, key, ca) =
        (late("password"), late("token"), late("late.pem"), late("late.key"), late("late-ca.pem"));
    let secure = free_port();
    gateway.keys("[[mqtt]]", &format!("username = \"gw\"\npassword_file = {password:?}\n"));
    gateway.keys("[http]", &format!("token_file = {token:?}\n"));
    let tls = format!(
        "[[tcp]]\nname = \"secure\"\nlisten = \"127.0.0.1:{secure}\"\ncert_file = {cert:?}\nkey_file = {key:?}\n\
         [[mqtt]]\nname = \"cloud\"\nbrokers = [\"mqtts://127.0.0.1:1\"]\nca_file = {ca:?}\n[store]"
    );
    gateway.keys("[store]", "");
    gateway.replace("[store]", &tls);
    let gateway = gateway.started().await;

    // Devices are served.
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 1).await;
    talk.readings(1, 1, 5).await;
    talk.acked(5).await;
    // What is missing is told, in the log and, once there is a token, by health.
    for (part, file) in [("mqtt", &password), ("http", &token), ("secure", &cert), ("cloud", &ca)] {
        let line = format!("{}: it is not there", file.display());
        eventually(&format!("{part} waits for {}\n{}", file.display(), gateway.log()), async || {
            gateway.log().lines().any(|told| told.contains(part) && told.contains(&line))
        })
        .await;
    }
    assert!(ask(&gateway, "/health/ready").await.starts_with("HTTP/1.1 503"), "nobody is let in without a token");
    fs::write(&token, TOKEN).expect("a file");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).expect("a mode");
    eventually("the token is taken", async || ask(&gateway, "/health/ready").await.starts_with("HTTP/1.1 200")).await;
    let health = ask(&gateway, "/health/ready").await;
    assert!(health.contains("late.pem: it is not there; nobody is let in over TLS"), "{health}");

    // All of it comes.
    fs::write(&password, "secret").expect("a file");
    fs::copy(certificates.path("server.pem"), &cert).expect("a file");
    fs::copy(certificates.path("server.key"), &key).expect("a file");
    let address = format!("127.0.0.1:{secure}");
    eventually("TLS is spoken", async || certificates.connect(&address, None).await.is_ok()).await;
    eventually("the broker is connected to", async || {
        ask(&gateway, "/metrics").await.contains("tidegate_sink_connected{sink=\"mqtt\"} 1")
    })
    .await;
    eventually("health has no more to say of it", async || !ask(&gateway, "/health/ready").await.contains("late.pem"))
        .await;
}

#[tokio::test]
async fn verbs_need_only_what_they_use() {
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "").started().await;
    let config = fs::read_to_string(gateway.config_file()).expect("a configuration");
    let wrong = gateway.directory().join("wrong.toml");
    let broken = config.replace("[gateway]", "nonsense = 1\n[gateway]\nlog_level = \"inof\"\n")
        .replace("[[mqtt]]", "[[mqtt]]\nusername = \"gw\"\npassword_file = \"${CREDENTIALS_DIRECTORY}/password\"\nwindow = 0\nclient_id = \"${NOT_SET}\"\n")
        .replace("[[tcp]]", "[[tcp]]\nlisen = \"\"\ncert_file = \"/no/such.pem\"\n");
    fs::write(&wrong, &broken).expect("a file");
    for (arguments, code, words) in [
        (&["devices"][..], 0, "DEVICE"),
        (&["queue", "stats"], 0, "epoch"),
        (&["queue", "verify"], 0, "fine"),
        (&["queue", "purge"], 1, "stop"),
        (&["send", "--gateway", "ping"], 0, ""),
        (&["key", "new", "a"], 0, "secret"),
        (&["key", "list"], 0, "hmac"),
        (&["key", "revoke", "a"], 0, ""),
        (&["link", "list"], 0, ""),
        (&["check"], 2, "did you mean `info`"),
    ] {
        let output = tidegate(arguments, &wrong);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output));
        assert!(text(&output).contains(words), "{arguments:?}: {}", text(&output));
    }
    // What they use has to be right: nothing else is taken in its place.
    fs::write(&wrong, config.replace("[store]\ndirectory", "[store]\ndirectorry")).expect("a file");
    let output = tidegate(&["queue", "purge", "--yes"], &wrong);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("did you mean `directory`?"), "{}", text(&output));
    // The environment of a service is not that of a shell: it has not to be there to look.
    let credential = "[[mqtt]]\nusername = \"gw\"\npassword_file = \"${CREDENTIALS_DIRECTORY}/password\"\n";
    fs::write(&wrong, config.replace("[[mqtt]]", credential)).expect("a file");
    let output = tidegate(&["check"], &wrong);
    assert!(output.status.success(), "{}", text(&output));
    let expected = "mqtt[0].password_file: not checked: systemd puts /run/credentials/tidegate.service/password there";
    assert!(text(&output).contains(expected), "{}", text(&output));
}

#[tokio::test]
async fn check_says_what_it_may_not_read_and_finds_no_fault_in_that() {
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    let secret = gateway.directory().join("password");
    fs::write(&secret, "secret").expect("a file");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).expect("a mode");
    let mut gateway = gateway;
    gateway.keys("[[mqtt]]", &format!("username = \"gw\"\npassword_file = {secret:?}\n"));
    let config = gateway.config_file();
    let output = tidegate_as_nobody(&["check"], &config, &gateway.directory());
    let expected = format!("mqtt[0].password_file: not checked: this user may not read {}", secret.display());
    assert!(output.status.success() && text(&output).contains(&expected), "{}", text(&output));
    assert!(text(&output).contains("is fine, as far as it could be checked"), "{}", text(&output));
    assert!(text(&output).contains("run this as root"), "{}", text(&output));
}

#[tokio::test]
async fn a_certificate_without_its_key_replaces_nothing_though_nobody_ever_connected() {
    let certificates = Certificates::new();
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    gateway.keys("[[tcp]]", &certificates.listener());
    gateway.launch();
    let mut gateway = gateway;
    eventually("it listens", async || gateway.log().contains("listening for devices")).await;
    // A renewal that was cut short.
    let key = fs::read(certificates.path("server.key")).expect("a key");
    certificates.issue("server", "localhost");
    fs::write(certificates.path("server.key"), key).expect("a file");
    eventually("the old pair serves on", async || {
        gateway.log().lines().any(|line| line.contains("the old ones stay in use") && line.contains("tcp"))
    })
    .await;
    let stream = certificates.connect(&gateway.tcp_address(), None).await.expect("a TLS connection");
    let mut talk = Talk::over(stream, POSTCARD);
    talk.say(&hello("pump", 1, 1)).await;
    talk.welcome().await;
    let (_, health) = gateway.get("/health/ready").await.expect("an answer");
    assert!(health.contains("the gateway uses what it read before"), "{health}");
    gateway.process();
}

#[tokio::test]
async fn what_goes_wrong_with_tls_is_told_with_address_and_reason() {
    let certificates = Certificates::new();
    certificates.issue("pump", "pump-7");
    let (strangers, http) = (Certificates::new(), Certificates::new());
    strangers.issue("pump", "pump-7");
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    let clients = format!("client_ca_file = {:?}\n", certificates.path("ca.pem"));
    gateway.keys("[[tcp]]", &(certificates.listener() + &clients));
    gateway.keys("[http]", &http.listener());
    let gateway = gateway.started().await;
    let told = async |link: &str, words: &str| {
        eventually(&format!("{words} is told\n{}", gateway.log()), async || {
            let told = |line: &str| line.contains("INFO") && line.contains(link) && line.contains("127.0.0.1:");
            gateway.log().lines().any(|line| told(line) && line.contains(words))
        })
        .await;
    };
    for (link, address) in [("tcp", gateway.tcp_address()), ("http", gateway.http_address())] {
        let mut plain = TcpStream::connect(&address).await.expect("it listens");
        plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("it reads");
        told(link, "what came is no TLS").await;
        assert!(strangers.connect(&address, None).await.is_err(), "another authority");
        told(link, "the client does not trust the certificate").await;
    }
    let address = gateway.tcp_address();
    if let Ok(mut stream) = certificates.connect(&address, None).await {
        let _ = stream.read(&mut [0]).await;
    }
    told("tcp", "the client showed no certificate").await;
    fs::copy(strangers.path("pump.pem"), certificates.path("forged.pem")).expect("a file");
    fs::copy(strangers.path("pump.key"), certificates.path("forged.key")).expect("a file");
    if let Ok(mut stream) = certificates.connect(&address, Some("forged")).await {
        let _ = stream.read(&mut [0]).await;
    }
    told("tcp", "is of no authority in client_ca_file").await;
}

#[tokio::test]
async fn a_certificate_that_expires_is_told_by_check_log_health_and_metric() {
    let certificates = Certificates::new();
    let now = std::time::SystemTime::now();
    let day = Duration::from_secs(24 * 3600);
    certificates.issue_until("server", "localhost", now - day);
    certificates.issue_until("client", "gateway", now + 10 * day + day / 2);
    let mut gateway = Gateway::with_broker("mqtts://127.0.0.1:1", "");
    gateway.keys("[[tcp]]", &certificates.listener());
    let client = format!(
        "ca_file = {:?}\ncert_file = {:?}\nkey_file = {:?}\n",
        certificates.path("ca.pem"),
        certificates.path("client.pem"),
        certificates.path("client.key")
    );
    gateway.keys("[[mqtt]]", &client);
    let checked = tidegate(&["check"], &gateway.config_file());
    let (expired, expires) = ("server.pem has expired, at ", "client.pem expires in 10 days, at ");
    assert!(checked.status.success(), "{}", text(&checked));
    for words in [format!("tcp[0]: the certificate in {}", certificates.path(expired).display()), expires.to_owned()] {
        assert!(text(&checked).contains(&words), "{words}: {}", text(&checked));
    }
    let gateway = gateway.started().await;
    eventually("health tells", async || {
        let (_, health) = gateway.get("/health/ready").await.expect("an answer");
        health.contains(expired) && health.contains(expires) && health.contains("renew it")
    })
    .await;
    for (part, words) in [("tcp", "the certificate has expired"), ("mqtt", "the certificate expires in 10 days")] {
        let told = gateway.log().lines().filter(|line| line.contains(part) && line.contains(words)).count();
        assert_eq!(told, 1, "{part}: {}", gateway.log());
    }
    let of_tcp = gateway.figure("tidegate_certificate_expires_seconds{part=\"tcp\"}").await;
    let since_1970 = now.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
    assert!((since_1970 - of_tcp - 86_400.0).abs() < 2.0, "{of_tcp}");
    // A renewal ends it.
    certificates.issue("server", "localhost");
    eventually("health is content", async || {
        let (_, health) = gateway.get("/health/ready").await.expect("an answer");
        !health.contains(expired)
    })
    .await;
}

#[tokio::test]
async fn what_root_makes_belongs_to_whom_the_directory_belongs() {
    if !is_root() {
        return;
    }
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    let log = gateway.directory().join("log");
    fs::create_dir(&log).expect("a directory");
    std::os::unix::fs::chown(&log, Some(NOBODY), Some(NOBODY)).expect("another owner");
    gateway.start().await;
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 1).await;
    talk.readings(1, 1, 5).await;
    talk.acked(5).await;
    gateway.kill();
    let config = gateway.config_file();
    assert!(tidegate(&["key", "new", "a"], &config).status.success());
    assert_eq!(tidegate(&["queue", "verify"], &config).status.code(), Some(0));
    let mut count = 0;
    for entry in fs::read_dir(&log).expect("a directory") {
        let path = entry.expect("a file").path();
        let owner = fs::metadata(&path).expect("it is there").uid();
        assert_eq!(owner, NOBODY, "{}", path.display());
        count += 1;
    }
    assert!(count >= 4, "{count} files");
}

#[tokio::test]
async fn a_file_of_another_in_the_log_is_named_with_its_owner_and_the_remedy() {
    if !is_root() {
        return;
    }
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    let log = gateway.directory().join("log");
    fs::create_dir(&log).expect("a directory");
    fs::write(log.join("lock"), "").expect("a file of root's");
    std::os::unix::fs::chown(&log, Some(NOBODY), Some(NOBODY)).expect("another owner");
    let config = gateway.config_file();
    let output = tidegate_as_nobody(&["run"], &config, &gateway.directory());
    let expected = format!("{} belongs to root, and this is ", log.join("lock").display());
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains(&expected) && text(&output).contains("sudo chown -R "), "{}", text(&output));
}

#[tokio::test]
async fn a_key_that_finds_no_room_leaves_nothing_behind() {
    let Some(disk) = crate::support::mount::SmallDisk::mount(1) else { return };
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    let keys = disk.path().join("keys");
    let config = fs::read_to_string(gateway.config_file()).expect("a configuration");
    let path = gateway.directory().join("keys.toml");
    fs::write(&path, format!("{config}\n[devices]\nkeys_file = {keys:?}\n")).expect("a file");
    disk.fill();
    let before = names(disk.path());
    for kind in [&[][..], &["--token"]] {
        let output = tidegate(&[&["key", "new", "a"], kind].concat(), &path);
        assert!(!output.status.success() && text(&output).contains("cannot write "), "{}", text(&output));
        assert!(output.stdout.is_empty(), "no secret is shown of a key that is not kept");
        assert_eq!(names(disk.path()), before);
    }
    disk.free();
    assert!(tidegate(&["key", "new", "a"], &path).status.success());
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("a file").file_name());
    let mut names: Vec<_> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
