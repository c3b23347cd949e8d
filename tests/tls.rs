//! TLS on a TCP link: who is let in by it, what it costs others, and how it is renewed.

use crate::support::device::{POSTCARD, Talk, hello};
use crate::support::gateway::Gateway;
use crate::support::tls::Certificates;
use crate::support::{PATIENCE, eventually, installed, real_services_are_required};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};
use tidegate::wire::message::{GatewayMessage, Reason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

fn gateway(certificates: &Certificates, keys: &str) -> Gateway {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    gateway.keys("[[tcp]]", &(certificates.listener() + keys));
    gateway
}

fn with_clients(certificates: &Certificates, demand: &str) -> String {
    format!("client_ca_file = {:?}\nclient_certificates = \"{demand}\"\n", certificates.path("ca.pem"))
}

async fn talk(certificates: &Certificates, address: &str, client: Option<&str>) -> Talk<TlsStream<TcpStream>> {
    Talk::over(certificates.connect(address, client).await.expect("a TLS connection"), POSTCARD)
}

fn refused(reason: &str) -> String {
    format!("tidegate_connections_refused_total{{link=\"tcp\",reason=\"{reason}\"}}")
}

#[tokio::test]
async fn readings_are_acknowledged_over_tls() {
    let certificates = Certificates::new();
    let gateway = gateway(&certificates, "").started().await;
    let mut talk = talk(&certificates, &gateway.tcp_address(), None).await;
    talk.say(&hello("pump", 1, 1)).await;
    talk.welcome().await;
    // Frames larger than a record of TLS, and more answers than fit a socket's buffer.
    for seq in (1..=20_000).step_by(500) {
        talk.readings(1, seq, 500).await;
    }
    talk.acked(20_000).await;
}

#[tokio::test]
async fn who_speaks_no_tls_is_not_heard() {
    let certificates = Certificates::new();
    let gateway = gateway(&certificates, "").started().await;
    let before = gateway.figure(&refused("tls")).await;
    let mut plain = Talk::connect(&gateway.tcp_address(), POSTCARD).await;
    plain.say(&hello("pump", 1, 1)).await;
    assert_eq!(plain.hear().await, None);
    gateway.figure_becomes(&refused("tls"), |refused| refused > before).await;
    assert_eq!(gateway.figure("tidegate_devices_connected").await, 0.0);
}

#[tokio::test]
async fn a_client_certificate_lets_in_the_device_that_it_names_and_no_other() {
    let certificates = Certificates::new();
    certificates.issue("pump", "pump-7");
    let stranger = Certificates::new();
    stranger.issue("pump", "pump-7");
    let gateway = gateway(&certificates, &with_clients(&certificates, "required")).started().await;
    let address = gateway.tcp_address();

    let mut pump = talk(&certificates, &address, Some("pump")).await;
    pump.say(&hello("pump-7", 1, 1)).await;
    pump.welcome().await;
    pump.readings(7, 1, 10).await;
    pump.acked(10).await;

    let mut other = talk(&certificates, &address, Some("pump")).await;
    other.say(&hello("pump-8", 1, 1)).await;
    assert_eq!(other.goodbye().await.reason, Reason::Unauthorized);

    // Without a certificate of this authority there is no connection. (With TLS 1.3 a
    // client learns that only when it reads.)
    let before = gateway.figure(&refused("tls")).await;
    std::fs::copy(stranger.path("pump.pem"), certificates.path("forged.pem")).expect("a file");
    std::fs::copy(stranger.path("pump.key"), certificates.path("forged.key")).expect("a file");
    for client in [None, Some("forged")] {
        if let Ok(mut stream) = certificates.connect(&address, client).await {
            assert!(stream.read(&mut [0; 100]).await.is_err());
        }
    }
    gateway.figure_becomes(&refused("tls"), |refused| refused >= before + 2.0).await;

    // That is an attempt as any other.
    let failures = "tidegate_authentication_failures_total{link=\"tcp\",reason=\"certificate\"}";
    gateway.figure_becomes(failures, |failures| failures >= 3.0).await;
    eventually("the address is locked out", async || {
        let _ = certificates.connect(&address, None).await;
        gateway.figure(&refused("locked_out")).await >= 1.0
    })
    .await;
}

#[tokio::test]
async fn where_certificates_are_optional_one_may_do_without_but_not_with_another_s() {
    let certificates = Certificates::new();
    certificates.issue("pump", "pump-7");
    let gateway = gateway(&certificates, &with_clients(&certificates, "optional")).started().await;
    let address = gateway.tcp_address();
    for (client, device, lets_in) in
        [(None, "valve", true), (Some("pump"), "pump-7", true), (Some("pump"), "valve", false)]
    {
        let mut talk = talk(&certificates, &address, client).await;
        talk.say(&hello(device, 1, 1)).await;
        let welcomed = matches!(talk.hear().await, Some(GatewayMessage::Welcome(_)));
        assert_eq!(welcomed, lets_in, "{client:?} {device}");
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_used_and_a_broken_one_is_not() {
    let certificates = Certificates::new();
    let gateway = gateway(&certificates, "").started().await;
    let address = gateway.tcp_address();
    let shown = async || {
        let stream = certificates.connect(&address, None).await.expect("a TLS connection");
        stream.get_ref().1.peer_certificates().expect("the server's")[0].to_vec()
    };
    let old = shown().await;

    std::fs::write(certificates.path("server.key"), "nothing").expect("a file");
    eventually("the broken key is told", async || {
        assert_eq!(shown().await, old, "the old certificate serves on");
        gateway.log().contains("the old ones stay in use")
    })
    .await;

    let mut before = talk(&certificates, &address, None).await;
    before.say(&hello("pump", 1, 1)).await;
    before.welcome().await;
    certificates.issue("server", "localhost");
    eventually("the new certificate is shown", async || shown().await != old).await;
    before.readings(1, 1, 5).await;
    before.acked(5).await;
}

#[tokio::test]
async fn a_handshake_that_drips_or_never_comes_is_gone_in_time() {
    let certificates = Certificates::new();
    let gateway = gateway(&certificates, "handshake_timeout = \"700ms\"\n").started().await;
    let address = gateway.tcp_address();
    let since = Instant::now();
    let drip = async {
        let mut stream = TcpStream::connect(&address).await.expect("the gateway listens");
        // A record of 512 bytes of handshake, a ClientHello.
        let record = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
        for byte in record.into_iter().chain(std::iter::repeat(7)) {
            if stream.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        since.elapsed()
    };
    let mute = async {
        let mut stream = TcpStream::connect(&address).await.expect("the gateway listens");
        let _ = stream.read(&mut [0; 100]).await;
        since.elapsed()
    };
    // Hello has to come within the same time.
    let no_hello = async {
        let mut talk = talk(&certificates, &address, None).await;
        assert_eq!(talk.goodbye().await.text, "no Hello came within 700ms");
        since.elapsed()
    };
    let all = tokio::time::timeout(PATIENCE, async { tokio::join!(drip, mute, no_hello) });
    let (drip, mute, no_hello) = all.await.expect("each is closed");
    for took in [drip, mute, no_hello] {
        assert!(took >= Duration::from_millis(600) && took < Duration::from_secs(5), "{took:?}");
    }
}

#[tokio::test]
async fn more_handshake_than_anybody_needs_is_refused() {
    let certificates = Certificates::new();
    let gateway = gateway(&certificates, "handshake_timeout = \"10m\"\n").started().await;
    let mut stream = TcpStream::connect(gateway.tcp_address()).await.expect("the gateway listens");
    // A ClientHello of 60 KB, in records of 4 KiB: rustls would wait for all of it.
    let mut hello = vec![1, 0, 0xea, 0x60];
    hello.resize(60_000, 7);
    for piece in hello.chunks(4096) {
        let mut record = vec![0x16, 3, 1, (piece.len() >> 8) as u8, piece.len() as u8];
        record.extend(piece);
        if stream.write_all(&record).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut rest = Vec::new();
    let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    assert!(end.is_ok(), "the connection is closed");
    gateway.figure_becomes(&refused("tls"), |refused| refused >= 1.0).await;
}

#[tokio::test]
async fn silent_connections_make_room_for_a_handshake() {
    let certificates = Certificates::new();
    let keys = "max_connections = 16\nhandshake_timeout = \"10m\"\n";
    let gateway = gateway(&certificates, keys).started().await;
    let address = gateway.tcp_address();
    let mut silent = Vec::new();
    for _ in 0..60 {
        silent.push(TcpStream::connect(&address).await.expect("the gateway listens"));
    }
    let mut talk = talk(&certificates, &address, None).await;
    talk.say(&hello("pump", 1, 1)).await;
    talk.welcome().await;
    assert!(gateway.figure(&refused("evicted")).await >= 10.0);
}

#[tokio::test]
async fn simulated_devices_get_in_by_key_and_by_certificate() {
    let certificates = Certificates::new();
    certificates.issue("first", "sim-1");
    let keys = with_clients(&certificates, "optional") + "authentication = \"hmac\"\n";
    let gateway = gateway(&certificates, &keys).started().await;
    let (ca, secret) = (certificates.path("ca.pem"), gateway.directory().join("secret"));
    let tidegate = |arguments: &[&std::ffi::OsStr]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.args(arguments).output().expect("the binary runs")
    };
    let config = gateway.config_file();
    let made = tidegate(&["key".as_ref(), "new".as_ref(), "sim".as_ref(), "-c".as_ref(), config.as_ref()]);
    let mut file = std::fs::OpenOptions::new();
    let mut file = file.write(true).create_new(true).mode(0o600).open(&secret).expect("a file");
    file.write_all(&made.stdout).expect("a secret");

    let port = gateway.tcp_address();
    let address = format!("tcp://localhost:{}", port.rsplit_once(':').expect("a port").1);
    let simulate = |more: &[&std::ffi::OsStr]| {
        let common = ["simulate", &address, "--readings", "20", "--give-up", "5s", "--tls", "--ca-file"];
        let common = common.map(std::ffi::OsStr::new);
        tidegate(&[&common[..], &[ca.as_ref()], more].concat())
    };
    let output = simulate(&["--key".as_ref(), "sim".as_ref(), "--secret-file".as_ref(), secret.as_ref()]);
    assert!(output.status.success(), "{output:?}");
    let (cert, key) = (certificates.path("first.pem"), certificates.path("first.key"));
    let shown = ["--cert-file".as_ref(), cert.as_ref(), "--key-file".as_ref(), key.as_ref(), "--devices".as_ref()];
    let output = simulate(&[&shown[..], &["1".as_ref()]].concat());
    assert!(output.status.success(), "{output:?}");
    let output = simulate(&["--devices".as_ref(), "1".as_ref()]);
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stdout).contains("--key"), "{output:?}");
}

/// What docs/authentication.md says how to make certificates, but for a host of this name.
#[tokio::test]
async fn certificates_made_as_documented_let_a_device_in() {
    if installed("openssl").is_none() {
        assert!(!real_services_are_required(), "openssl is not installed");
        return;
    }
    let document = include_str!("../docs/authentication.md").replace("gateway.local", "localhost");
    let commands = document.split("```sh\n").filter_map(|block| block.split_once("```")).map(|(block, _)| block);
    let commands = commands.filter(|block| block.contains("openssl req")).collect::<String>();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut shell = std::process::Command::new("sh");
    let made = shell.args(["-e", "-c", &commands]).current_dir(directory.path()).output().expect("a shell");
    assert!(made.status.success(), "{commands}\n{made:?}");

    let path = |name: &str| directory.path().join(name);
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    let keys = [("cert_file", "server.pem"), ("key_file", "server.key"), ("client_ca_file", "devices-ca.pem")];
    let keys: String = keys.iter().map(|(key, file)| format!("{key} = {:?}\n", path(file))).collect();
    gateway.keys("[[tcp]]", &keys);
    let gateway = gateway.started().await;
    let address = format!("tcp://{}", gateway.tcp_address().replace("127.0.0.1", "localhost"));
    let mut simulate = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
    simulate.args(["simulate", &address, "--devices", "1", "--prefix-id", "pump", "--readings", "10", "--tls"]);
    for (option, file) in [("--ca-file", "devices-ca.pem"), ("--cert-file", "pump-1.pem"), ("--key-file", "pump-1.key")]
    {
        simulate.arg(option).arg(path(file));
    }
    let output = simulate.output().expect("the binary runs");
    assert!(output.status.success(), "{output:?}\n{}", gateway.log());
}

#[tokio::test]
async fn an_idle_connection_takes_no_more_memory_than_it_is_charged() {
    const COUNT: usize = 500;
    let certificates = Certificates::new();
    let mut gateway = gateway(&certificates, "").started().await;
    let address = gateway.tcp_address();
    let process = gateway.process().id();
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its size");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
    };
    let connected = async |count: usize, from: usize| {
        let mut all = Vec::new();
        for number in from..from + count {
            let mut talk = talk(&certificates, &address, None).await;
            talk.say(&hello(&format!("pump-{number}"), 1, 1)).await;
            talk.welcome().await;
            all.push(talk);
        }
        all
    };
    // The first ones pay for what all of them share.
    let _first = connected(50, 0).await;
    let (before, charged) = (resident(), gateway.figure("tidegate_memory_links_bytes").await);
    let _all = connected(COUNT, 50).await;
    let each = (resident() - before) / COUNT;
    let charged = (gateway.figure("tidegate_memory_links_bytes").await - charged) as usize / COUNT;
    println!("{each} bytes each, charged for {charged}");
    assert!(each <= charged, "{each} bytes each, charged for {charged}");
}
