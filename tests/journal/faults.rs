//! The faults, each with the words that a person looks for in the line about it.

use super::machine::{CONFIG, STATE};
use super::support::broker::Broker;
use super::support::device::{Device, POSTCARD, Talk, hello};
use super::support::eventually;
use super::support::gateway::figure;
use super::support::tls::Certificates;
use super::trial::{HTTP, Trial};
use std::io::Write;
use std::sync::Arc;
use tidegate::device::auth::Secret;
use tidegate::wire::message::GatewayMessage;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub const TCP: &str = "127.0.0.1:7411";

/// Where nobody listens.
const NOBODY: &str = "127.0.0.1:1";

/// Links and sinks with nothing to report, and what `more` adds.
pub fn config(more: &str) -> String {
    format!("[[tcp]]\nlisten = \"{TCP}\"\n[[mqtt]]\nbrokers = [\"mqtt://{NOBODY}\"]\n{more}")
}

/// The gateway as it is shipped: a broker on this machine is what it is short of.
pub async fn as_installed(trial: &mut Trial) {
    trial.answers().await;
    let broker = ["mqtt", "localhost:1883", "nothing listens"];
    trial.reads("no broker where one is configured", 0, &broker).await;
    trial.ready("no broker where one is configured", 200, &["\"mqtt\"", "localhost:1883", "nothing listens"]).await;
    let start = trial.journal.len();
    let stream = TcpStream::connect(TCP).await.expect("it listens");
    let from = stream.local_addr().expect("an address").to_string();
    let mut talk = Talk::over(stream, POSTCARD);
    talk.say(&hello("pump-1", 1, 1)).await;
    talk.welcome().await;
    trial.reads("a device connects", start, &["pump-1", "tcp", &from]).await;
    drop(talk);
    trial.reads("a device goes without a word", start, &["disconnected", "pump-1", "tcp", &from]).await;
}

pub async fn signals(trial: &mut Trial) {
    let start = trial.starts_with(&config(""));
    let before = trial.machine.property("tidegate", "MainPID");
    trial.machine.shell("systemctl kill --signal=HUP tidegate");
    trial.reads("SIGHUP", start, &["SIGHUP", "restart"]).await;
    if trial.machine.property("tidegate", "MainPID") != before {
        trial.fails("SIGHUP", "it ended the gateway");
    }
    let start = trial.journal.len();
    trial.machine.shell("systemctl kill --signal=KILL tidegate");
    trial.reads("SIGKILL", start, &["status=9/KILL"]).await;
    trial.reads("the start after SIGKILL", start, &["did not end by a stop", "killed", "journalctl"]).await;
    trial.answers().await;
}

/// Whatever a link or a sink can be short of at the start: the rest goes on, and what comes
/// later is taken.
pub async fn links_and_sinks(trial: &mut Trial) {
    let (ours, others) = (Certificates::new(), Certificates::new());
    let read = |path| std::fs::read(path).expect("a file that was made");
    trial.machine.place("/etc/tidegate/others-ca.pem", &read(others.path("ca.pem")), 0o644);
    trial.machine.place("/etc/tidegate/locked-password", b"open sesame\n", 0o600);
    let (certificate, key) = (read(ours.path("server.pem")), read(ours.path("server.key")));
    let lines = ["cafile ca.pem", "certfile server.pem", "keyfile server.key"].map(|line| {
        let (option, file) = line.split_once(' ').expect("two words");
        format!("{option} {}", ours.path(file).display())
    });
    let secured = Broker::mosquitto(&format!("allow_anonymous true\n{}", lines.join("\n"))).await;
    let plain = Broker::mosquitto("allow_anonymous false").await;
    let mut shaky = Broker::mosquitto("allow_anonymous true").await;
    let (secured_port, plain_port) = (secured.port(), plain.port());
    let mut config = format!(
        r#"
[[tcp]]
name = "plain"
listen = "{TCP}"
[[tcp]]
name = "late"
listen = "192.0.2.1:7413"
authentication = "hmac"
[[tcp]]
name = "uncertified"
listen = "127.0.0.1:7414"
cert_file = "/etc/tidegate/late.pem"
key_file = "/etc/tidegate/late.key"
[[serial]]
name = "boiler"
path = "/dev/ttyUSB7"
"#
    );
    let sinks = [
        ("waiting", format!("mqtt://{NOBODY}"), "password_file = \"/etc/tidegate/late-password\""),
        ("locked", format!("mqtt://{NOBODY}"), "password_file = \"/etc/tidegate/locked-password\""),
        ("distant", format!("mqtts://localhost:{secured_port}"), "ca_file = \"/etc/tidegate/late-ca.pem\""),
        ("cloud", format!("mqtts://localhost:{secured_port}"), "ca_file = \"/etc/tidegate/others-ca.pem\""),
        ("plainly", format!("mqtt://localhost:{secured_port}"), ""),
        ("secretly", format!("mqtts://localhost:{plain_port}"), "ca_file = \"/etc/tidegate/others-ca.pem\""),
        ("stranger", format!("mqtt://localhost:{plain_port}"), ""),
        ("shaky", shaky.url(), ""),
    ];
    for (name, url, more) in sinks {
        let user = if more.starts_with("password_file") { "username = \"gw\"" } else { "" };
        config +=
            &format!("[[mqtt]]\nname = \"{name}\"\nbrokers = [\"{url}\"]\nbackoff_max = \"1s\"\n{user}\n{more}\n");
    }
    let start = trial.starts_with(&config);
    let (secured_at, plain_at) = (format!("localhost:{secured_port}"), format!("localhost:{plain_port}"));
    let rows: [(&str, &[&str]); 10] = [
        ("no serial port", &["boiler", "/dev/ttyUSB7", "plug"]),
        ("an address that is not there", &["late", "192.0.2.1:7413", "ip address"]),
        ("no certificate", &["uncertified", "/etc/tidegate/late.pem"]),
        ("no password", &["waiting", "/etc/tidegate/late-password"]),
        ("a password that the service may not read", &["locked", "/etc/tidegate/locked-password", "tidegate"]),
        ("no authority", &["distant", "/etc/tidegate/late-ca.pem"]),
        ("a broker of another authority", &["cloud", &secured_at, "ca_file"]),
        ("no TLS where the broker wants it", &["plainly", &secured_at, "mqtts://"]),
        ("TLS where the broker has none", &["secretly", &plain_at, "mqtt://"]),
        ("a broker that does not let it in", &["stranger", &plain_at, "username"]),
    ];
    for (fault, words) in rows {
        trial.reads(fault, start, words).await;
        trial.ready(fault, 200, &words[..2]).await;
    }
    served(trial, "faults of others").await;

    let connected = async || figure(HTTP, "tidegate_sink_connected{sink=\"shaky\"}").await;
    for _ in 0..4 {
        eventually("the broker is connected to", async || connected().await == 1.0).await;
        shaky.stop().await;
        eventually("the broker is lost", async || connected().await == 0.0).await;
        shaky.resume().await;
    }
    eventually("the broker is connected to", async || connected().await == 1.0).await;
    trial.reads("a broker that is lost again and again", start, &["not connected", "shaky"]).await;
    trial.ready("a broker that is lost again and again", 200, &["\"shaky\"", "times within"]).await;

    // What comes late is taken.
    let start = trial.journal.len();
    let added = std::process::Command::new("ip").args(["address", "add", "192.0.2.1/32", "dev", "lo"]).status();
    assert!(added.expect("ip runs").success(), "the address can be given");
    trial.machine.place("/etc/tidegate/late-ca.pem", &read(ours.path("ca.pem")), 0o644);
    trial.machine.place("/etc/tidegate/late-password", b"open sesame\n", 0o644);
    trial.machine.place("/etc/tidegate/late.key", &key, 0o600);
    trial.machine.shell("chown tidegate /etc/tidegate/late.key");
    trial.machine.place("/etc/tidegate/late.pem", &certificate, 0o644);
    trial.reads("the address comes", start, &["listens", "late", "192.0.2.1:7413"]).await;
    trial.reads("the password comes", start, &["waiting", "nothing listens"]).await;
    trial.reads("the authority comes", start, &["connected to the broker", "distant", &secured_at]).await;
    eventually("the certificate comes", async || ours.connect("127.0.0.1:7414", None).await.is_ok()).await;
}

/// That a device is acknowledged.
async fn served(trial: &mut Trial, meanwhile: &str) {
    let (mut talk, welcome) = Talk::welcomed(TCP, "pump-1", fastrand::u64(..)).await;
    talk.readings(1, welcome.settled + 1, 10).await;
    talk.acked(welcome.settled + 10).await;
    println!("a device is acknowledged, {meanwhile} notwithstanding");
    assert_eq!(trial.machine.property("tidegate", "ActiveState"), "active");
}

/// Devices that are not let in, or make no sense.
pub async fn devices(trial: &mut Trial) {
    let (ours, others) = (Certificates::new(), Certificates::new());
    ours.issue_until("lapsed", "localhost", std::time::SystemTime::now() - std::time::Duration::from_secs(60));
    for name in ["server.pem", "server.key", "lapsed.pem", "lapsed.key"] {
        let content = std::fs::read(ours.path(name)).expect("a file that was made");
        trial.machine.place(&format!("/etc/tidegate/{name}"), &content, 0o600);
        trial.machine.shell(&format!("chown tidegate /etc/tidegate/{name}"));
    }
    let secure = "cert_file = \"/etc/tidegate/server.pem\"\nkey_file = \"/etc/tidegate/server.key\"\n";
    let links = format!(
        "[[tcp]]\nname = \"secure\"\nlisten = \"127.0.0.1:7414\"\n{secure}\
         [[tcp]]\nname = \"keyed\"\nlisten = \"127.0.0.1:7415\"\nauthentication = \"hmac\"\n\
         [[tcp]]\nname = \"lapsed\"\nlisten = \"127.0.0.1:7416\"\ncert_file = \"/etc/tidegate/lapsed.pem\"\n\
         key_file = \"/etc/tidegate/lapsed.key\"\n"
    );
    let start = trial.starts_with(&config(&links));
    trial
        .machine
        .shell("setpriv --reuid tidegate --regid tidegate --init-groups tidegate key new pumps --device 'pump-*'");
    let lapsed = ["lapsed", "/etc/tidegate/lapsed.pem", "expired", "renew"];
    trial.reads("a certificate that has expired", start, &lapsed).await;
    trial.ready("a certificate that has expired", 200, &lapsed).await;
    let stray = says(TCP, b"GET / HTTP/1.1\r\n\r\n").await;
    trial.reads("a web browser on the devices' port", start, &["tcp", &stray, "HTTP"]).await;
    let plain = says("127.0.0.1:7414", b"GET / HTTP/1.1\r\n\r\n").await;
    trial.reads("plain bytes where TLS is spoken", start, &["secure", &plain, "TLS"]).await;
    assert!(others.connect("127.0.0.1:7414", None).await.is_err(), "it does not trust the gateway");
    trial.reads("a device that trusts another authority", start, &["secure", "127.0.0.1:", "certificate"]).await;
    let keyed = "127.0.0.1:7415";
    for (key, secret, words) in [("pumps", [7; 32], "wrong"), ("none", [7; 32], "no such key")] {
        let stream = TcpStream::connect(keyed).await.expect("it listens");
        let from = stream.local_addr().expect("an address").to_string();
        let mut talk = Talk::over(stream, POSTCARD);
        talk.prove("pump-9", 1, key, &Secret(secret)).await;
        talk.goodbye().await;
        trial.reads(&format!("a bad key: {words}"), start, &["keyed", "pump-9", &from, key]).await;
    }
    let mut twins = Vec::new();
    for turn in 0..20 {
        let mut talk = Talk::connect(TCP, POSTCARD).await;
        talk.say(&hello("pump-3", 1 + turn % 2, 1)).await;
        talk.hear().await;
        twins.push(talk);
    }
    trial.reads("two devices of one name", start, &["two devices", "pump-3"]).await;
    drop(twins);
    for _ in 0..20 {
        let mut talk = Talk::connect(keyed, POSTCARD).await;
        talk.say(&hello("pump-9", 1, 1)).await;
        if let Some(GatewayMessage::Challenge(_)) = talk.hear().await {
            talk.answer("pumps", vec![7; 32]).await;
            talk.goodbye().await;
        }
    }
    trial.reads("many bad keys", start, &["keyed", "locked out", "127.0.0.1"]).await;
    let start = trial.journal.len();
    let renewed = std::fs::read(others.path("server.pem")).expect("a file that was made");
    trial.machine.place("/etc/tidegate/server.pem", &renewed, 0o600);
    trial.reads("a certificate without its key", start, &["secure", "/etc/tidegate/server.pem", "old"]).await;
    assert!(ours.connect("127.0.0.1:7414", None).await.is_ok(), "the old ones serve on");
    let start = trial.journal.len();
    for _ in 0..300 {
        says("127.0.0.1:7414", b"GET / HTTP/1.1\r\n\r\n").await;
    }
    served(trial, "300 connections that mean no good").await;
    let lines = trial.journal.since(start).iter().filter(|line| line.contains("secure")).count();
    println!("300 connections with plain bytes where TLS is spoken\n    {lines} lines");
    if lines > 30 {
        trial.fails("300 connections with plain bytes", &format!("{lines} lines"));
    }
}

/// Connects, says this and waits until that is over; from where it came.
async fn says(address: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let from = stream.local_addr().expect("an address").to_string();
    // Whatever it answers, if it does not hang up first.
    let _ = stream.write_all(bytes).await;
    let _ = stream.read_to_end(&mut Vec::new()).await;
    from
}

/// The token that requests are to bear is not there: no device waits for that.
pub async fn the_token(trial: &mut Trial) {
    let file = "/etc/tidegate/late-token";
    let start = trial.starts_with(&config(&format!("[http]\ntoken_file = \"{file}\"\n")));
    trial.reads("no token", start, &["http", file]).await;
    served(trial, "a token that is missing").await;
}

/// Configurations that it cannot go on with: it stays stopped, and says why.
pub async fn mistakes(trial: &mut Trial) {
    let rows: [(&str, String, &[&str]); 4] = [
        ("a key that does not exist", config("windwo = 5\n"), &["tidegate.toml:5", "windwo", "`window`"]),
        (
            "a level that does not exist",
            format!("[gateway]\nlog_level = \"warning\"\n{}", config("")),
            &["tidegate.toml:2", "log_level", "warning", "`warn`"],
        ),
        ("a size that is none", config("[store]\nmax_size = \"1 gig\"\n"), &["tidegate.toml:6", "max_size", "GiB"]),
        ("no TOML", config("[store\n"), &["tidegate.toml:5"]),
    ];
    for (fault, config, words) in rows {
        let start = trial.journal.len();
        if trial.machine.configure(&config) {
            trial.fails(fault, "it starts all the same");
            continue;
        }
        trial.reads(fault, start, words).await;
        let ended = ["SubState", "ExecMainStatus"].map(|name| trial.machine.property("tidegate", name));
        if ended != ["failed", "2"] {
            trial.fails(fault, &format!("it is not stopped for good: {ended:?}"));
        }
    }
    let start = trial.journal.len();
    trial.machine.shell(&format!("rm {CONFIG}"));
    let _ = trial.machine.command("systemctl").args(["restart", "tidegate"]).output().expect("nsenter runs");
    trial.reads("no configuration", start, &[CONFIG]).await;
}

/// Another program listens where devices should come.
pub async fn a_port_that_is_taken(trial: &mut Trial) {
    trial.machine.shell("systemctl stop tidegate");
    let taken = std::net::TcpListener::bind(TCP).expect("nobody listens");
    let start = trial.journal.len();
    trial.machine.place(CONFIG, config("").as_bytes(), 0o644);
    trial.machine.shell("systemctl start --no-block tidegate");
    trial.reads("a port that is taken", start, &["tcp", TCP, "another program"]).await;
    let start = trial.journal.len();
    drop(taken);
    trial.reads("the port is free", start, &["listens", "tcp", TCP]).await;
}

pub async fn a_full_disk(trial: &mut Trial) {
    let start = trial.starts_with(&config("[store]\nmax_size = \"32MiB\"\nmin_free = \"1MiB\"\n"));
    let device = Arc::new(Device::new(1, u64::MAX));
    let running = device.clone();
    let sending = tokio::spawn(async move { running.run_tcp(TCP).await });
    eventually("some readings are acknowledged", async || device.acked() > 10).await;
    let filler = trial.machine.path(&format!("{STATE}/filler"));
    let mut file = std::fs::File::create(&filler).expect("a file");
    let fill = async {
        loop {
            for size in [65536, 4096, 512] {
                while file.write(&vec![7; size]).is_ok_and(|written| written > 0) {}
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let told = async {
        trial.reads("a full disk", start, &["full", STATE, "free"]).await;
        trial.ready("a full disk", 503, &["\"log\"", "full"]).await;
    };
    tokio::select! {
        () = fill => {}
        () = told => {}
    }
    drop(file);
    let (start, before) = (trial.journal.len(), device.acked());
    std::fs::remove_file(filler).expect("the file");
    trial.reads("the disk has room again", start, &["has room"]).await;
    eventually("readings are acknowledged again", async || device.acked() > before).await;
    sending.abort();
}

/// Somebody ran it as root, and the service cannot use what that left.
pub async fn files_of_root(trial: &mut Trial) {
    trial.starts_with(&config(""));
    trial.machine.shell(&format!("systemctl stop tidegate; chown root:root {STATE}/log.db; chmod 600 {STATE}/log.db"));
    let start = trial.journal.len();
    trial.machine.shell("systemctl start --no-block tidegate");
    trial.reads("a file of root's", start, &["log.db", STATE, "root", "chown"]).await;
    trial.machine.shell(&format!("chown tidegate:tidegate {STATE}/log.db; systemctl restart tidegate"));
    trial.answers().await;
}
