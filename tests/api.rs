//! The HTTP API, as programs and the command line ask it.

use crate::support::device::Talk;
use crate::support::gateway::Gateway;
use crate::support::tls::Certificates;
use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// What the command line says about the gateway.
fn tidegate(gateway: &Gateway, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let (verb, rest) = arguments.split_at(if arguments[0] == "queue" { 2 } else { 1 });
    command.args(verb).arg("-c").arg(gateway.config_file()).args(rest);
    command.output().expect("it runs")
}

fn told(output: &Output) -> (Option<i32>, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[tokio::test]
async fn the_command_line_asks_over_tls_and_believes_the_configured_certificate_alone() {
    let certificates = Certificates::new();
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    let ca = certificates.path("ca.pem");
    gateway.keys("[http]", &format!("{}client_ca_file = {ca:?}\n", certificates.listener()));
    gateway.start().await;
    let (mut pump, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 1).await;
    pump.readings(1, 1, 3).await;
    pump.acked(3).await;
    let devices = tidegate(&gateway, &["devices"]);
    assert!(told(&devices).0 == Some(0) && told(&devices).1.contains("pump "), "{devices:?}");
    let ping = ["send", "--gateway", "ping", "--wait"];
    let sent = tidegate(&gateway, &ping);
    assert!(told(&sent).0 == Some(0) && told(&sent).1.contains(" done"), "{sent:?}");
    // It looks for a second at a gateway that answers.
    let since = Instant::now();
    let stats = tidegate(&gateway, &["queue", "stats"]);
    assert!(told(&stats).0 == Some(0) && since.elapsed() >= Duration::from_secs(1), "{stats:?}");

    // Renewed, perhaps within the second in which the gateway does not look.
    certificates.issue("server", "localhost");
    let sent = tidegate(&gateway, &ping);
    assert_eq!(told(&sent).0, Some(0), "{sent:?}");
    // Renewed, but not its key: the gateway goes on with the old one.
    let key = std::fs::read(certificates.path("server.key")).expect("a key");
    certificates.issue("server", "localhost");
    std::fs::write(certificates.path("server.key"), key).expect("it can be written");
    let (code, said) = told(&tidegate(&gateway, &ping));
    assert_eq!(code, Some(1));
    for words in ["shows another certificate than", "server.pem", "cert_file", "its log tells"] {
        assert!(said.contains(words), "{said}");
    }
    gateway.terminate().await;

    // Something else there.
    let address = gateway.http_address();
    let listener = TcpListener::bind(&address).expect("the port is free");
    let plain = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    });
    let (code, said) = told(&tidegate(&gateway, &ping));
    assert!(code == Some(1) && said.contains(&format!("no TLS with what answers at {address}")), "{said}");
    plain.join().expect("it was asked").expect("it answers");
}
