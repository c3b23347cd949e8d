//! Brokers that do not take everything: an older version, no retained messages, no wildcards.
//! The gateway does without, and readings go on.

use crate::support::gateway::Gateway;
use crate::support::script::{Manners, Script};
use crate::support::tls::Certificates;
use crate::support::{eventually, free_port};
use crate::uplink::{DELIVERED, send};
use tokio::net::{TcpListener, TcpStream};

/// A gateway with these keys that has delivered 100 readings to a broker of these manners.
async fn delivered(manners: Manners, keys: &str) -> (Script, Gateway) {
    let script = Script::start(manners).await;
    let gateway = Gateway::with_broker(&script.url(), keys).started().await;
    send(&gateway, 100).await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 100.0).await;
    (script, gateway)
}

#[tokio::test]
async fn version_5_is_spoken_unless_the_broker_refuses_it() {
    let (script, _gateway) = delivered(Manners { v5: true, ..Manners::default() }, "").await;
    assert_eq!(script.look(|seen| seen.levels.clone()), [5]);
    for closes_at_5 in [false, true] {
        // It is remembered when the connection is lost.
        let manners = Manners { closes_at_5, drop_after: vec![9, 1], ..Manners::default() };
        let (script, gateway) = delivered(manners, "max_batch = \"1KiB\"\n").await;
        let levels = script.look(|seen| seen.levels.clone());
        assert!(levels.starts_with(&[5, 4]) && levels[1..].iter().all(|level| *level == 4), "{levels:?}");
        assert!(gateway.log().contains("MQTT 3.1.1 is"), "{}", gateway.log());
    }
}

#[tokio::test]
async fn a_version_that_is_configured_is_the_only_one_that_is_tried() {
    let (script, _gateway) = delivered(Manners { v5: true, ..Manners::default() }, "version = \"5\"\n").await;
    assert_eq!(script.look(|seen| seen.levels.clone()), [5]);
    let (script, _gateway) = delivered(Manners::default(), "version = \"3.1.1\"\n").await;
    assert_eq!(script.look(|seen| seen.levels.clone()), [4]);
    let script = Script::start(Manners::default()).await;
    let gateway = Gateway::with_broker(&script.url(), "version = \"5\"\n").started().await;
    gateway.says("does not speak MQTT 5; set version").await;
    assert!(script.look(|seen| seen.levels.iter().all(|level| *level == 5)));
}

#[tokio::test]
async fn a_broker_that_refuses_retained_messages_gets_statuses_without_retain() {
    for (v5, version) in [(true, "5"), (false, "3.1.1")] {
        let manners = Manners { v5, retains_nothing: true, ..Manners::default() };
        let (script, gateway) = delivered(manners, &format!("version = \"{version}\"\n")).await;
        let status = |(topic, _): &(String, Vec<u8>)| topic.ends_with("gw/status");
        assert!(script.look(|seen| seen.acked.iter().any(status)), "{}", gateway.log());
        assert!(gateway.log().contains("go without retain"), "{}", gateway.log());
        // One connection shows it where the broker says so, four where it does not.
        assert!(script.look(|seen| seen.connects.len()) <= if v5 { 2 } else { 4 }, "{}", gateway.log());
    }
}

#[tokio::test]
async fn nothing_is_retained_where_connack_or_the_configuration_says_so() {
    let told = Manners { v5: true, tells_no_retain: true, ..Manners::default() };
    let (script, _gateway) = delivered(told, "").await;
    // The Last Will went before.
    assert_eq!(script.look(|seen| (seen.retained, seen.connects.len())), (1, 1));
    for (v5, version) in [(true, "5"), (false, "3.1.1")] {
        let manners = Manners { v5, retains_nothing: true, ..Manners::default() };
        let keys = format!("version = \"{version}\"\nretain = false\n");
        let (script, _gateway) = delivered(manners, &keys).await;
        assert_eq!(script.look(|seen| (seen.retained, seen.connects.len())), (0, 1));
    }
}

#[tokio::test]
async fn a_broker_without_wildcards_is_asked_for_the_gateway_s_commands_alone() {
    let (script, _gateway) =
        delivered(Manners { v5: true, no_wildcards: true, ..Manners::default() }, "watch_status = false\n").await;
    assert_eq!(script.look(|seen| seen.filters.clone()), ["tidegate/gw/command"]);
}

#[tokio::test]
async fn a_broker_that_has_too_much_to_do_is_left_for_the_next_one() {
    let busy =
        Script::start(Manners { v5: true, answers: vec![vec![0x20, 3, 0, 0x89, 0]; 9], ..Manners::default() }).await;
    let good = Script::start(Manners { v5: true, ..Manners::default() }).await;
    let gateway = Gateway::with_broker(&format!("{}\", \"{}", busy.url(), good.url()), "").started().await;
    send(&gateway, 100).await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 100.0).await;
    let mut restart = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
    restart.args(["send", "-c"]).arg(gateway.config_file()).args(["--gateway", "restart-sink", "{\"sink\":\"mqtt\"}"]);
    assert!(restart.status().expect("the program starts").success());
    eventually("it is connected to again", async || good.look(|seen| seen.connects.len()) == 2).await;
    assert_eq!(busy.look(|seen| seen.connects.len()), 1, "it rests: {}", gateway.log());
}

#[tokio::test]
async fn a_broker_that_names_another_server_is_followed_there() {
    let good = Script::start(Manners { v5: true, ..Manners::default() }).await;
    let server = format!("127.0.0.1:{}", good.port);
    let length = server.len() as u8;
    let mut answer = vec![0x20, 6 + length, 0, 0x9c, 3 + length, 0x1c, 0, length];
    answer.extend(server.as_bytes());
    // It takes the readings that the other one gets.
    let manners = Manners { v5: true, answers: vec![answer; 3], ..Manners::default() };
    let (full, _gateway) = delivered(manners, "").await;
    assert_eq!(full.look(|seen| seen.connects.len()), 1);
    assert_eq!(good.look(|seen| seen.connects.len()), 1);
}

#[tokio::test]
async fn the_first_broker_of_the_list_is_returned_to_when_it_can_be_reached_again() {
    for (v5, version) in [(true, "5"), (false, "3.1.1")] {
        let port = free_port();
        let manners = Manners { v5, ..Manners::default() };
        let second = Script::start(manners.clone()).await;
        let both = format!("mqtt://127.0.0.1:{port}\", \"{}", second.url());
        let keys = format!("version = \"{version}\"\nreturn_after = \"1s\"\n");
        let gateway = Gateway::with_broker(&both, &keys).started().await;
        send(&gateway, 50).await;
        gateway.figure_becomes(DELIVERED, |delivered| delivered == 50.0).await;
        let first = Script::start_on(port, manners).await;
        eventually("it returns", async || first.look(|seen| seen.acked.iter().any(|(t, _)| t.ends_with("gw/status"))))
            .await;
        second.look(|seen| {
            assert_eq!((seen.connects.len(), seen.left), (1, 1), "it took leave: {}", gateway.log());
            let (_, last) = seen.acked.iter().rfind(|(topic, _)| topic.ends_with("gw/status")).expect("a status");
            let last = String::from_utf8_lossy(last);
            assert!(last.contains("offline") && last.contains("moved"), "{last}");
        });
        assert!(gateway.log().contains(&format!("returning to mqtt://127.0.0.1:{port}")), "{}", gateway.log());
    }
}

#[tokio::test]
async fn the_first_broker_is_returned_to_once_the_certificates_are_there_that_it_needs() {
    let certificates = Certificates::new();
    let tls = Some(certificates.acceptor());
    let first = Script::start(Manners { v5: true, tls, ..Manners::default() }).await;
    let second = Script::start(Manners { v5: true, ..Manners::default() }).await;
    let both = format!("mqtts://localhost:{}\", \"{}", first.port, second.url());
    let [ca, late, key] = ["ca.pem", "late.pem", "client.key"].map(|name| certificates.path(name));
    let keys = format!("return_after = \"1s\"\nca_file = {ca:?}\ncert_file = {late:?}\nkey_file = {key:?}\n");
    let gateway = Gateway::with_broker(&both, &keys).started().await;
    send(&gateway, 50).await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 50.0).await;
    assert_eq!(second.look(|seen| seen.connects.len()), 1, "{}", gateway.log());
    std::fs::copy(certificates.path("client.pem"), late).expect("a file");
    eventually("it returns", async || first.look(|seen| seen.connects.len()) == 1).await;
    assert!(gateway.log().contains("returning to mqtts://localhost"), "{}", gateway.log());
}

/// Two networks: Ethernet, and a modem that is paid by the byte.
#[tokio::test]
async fn the_first_way_out_is_returned_to_when_the_broker_can_be_reached_by_it_again() {
    let certificates = Certificates::new();
    let tls = Some(certificates.acceptor());
    let broker = Script::start(Manners { v5: true, tls, ..Manners::default() }).await;
    let (ethernet, modem) = ("127.0.0.9", "127.0.0.8");
    let (plugged, is_plugged) = tokio::sync::watch::channel(false);
    let networks = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("mqtts://localhost:{}", networks.local_addr().expect("an address").port());
    let behind = broker.port;
    let _networks = tokio::spawn(async move {
        while let Ok((mut near, from)) = networks.accept().await {
            if from.ip().to_string() == ethernet && !*is_plugged.borrow() {
                continue;
            }
            tokio::spawn(async move {
                let mut far = TcpStream::connect(("127.0.0.1", behind)).await.expect("it listens");
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    let [ca, cert, key] = ["ca.pem", "client.pem", "client.key"].map(|name| certificates.path(name));
    let files = format!("ca_file = {ca:?}\ncert_file = {cert:?}\nkey_file = {key:?}\n");
    let keys = format!("return_after = \"1s\"\nbind = [\"{ethernet}\", \"{modem}\"]\n{files}");
    let gateway = Gateway::with_broker(&url, &keys).started().await;
    send(&gateway, 50).await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 50.0).await;
    gateway.says(&format!("what comes first cannot be used sink=mqtt why=\"{url} by {ethernet}: ")).await;
    assert!(gateway.log().contains(&format!("broker=\"{url} by {modem}\"")), "{}", gateway.log());
    plugged.send_replace(true);
    gateway.says(&format!("returning to {url} by {ethernet}")).await;
    gateway.says(&format!("broker=\"{url} by {ethernet}\"")).await;
}

#[tokio::test]
async fn a_last_will_whose_topic_is_refused_is_left_out() {
    let manners = Manners { v5: true, answers: vec![vec![0x20, 3, 0, 0x90, 0]], ..Manners::default() };
    let (script, gateway) = delivered(manners, "").await;
    assert_eq!(script.look(|seen| (seen.connects.len(), seen.wills)), (2, 1), "{}", gateway.log());
    assert!(gateway.log().contains("takes no Last Will"), "{}", gateway.log());
}

#[tokio::test]
async fn a_broker_that_confirms_nothing_by_its_own_word_is_not_used() {
    let answers = vec![vec![0x20, 5, 0, 0, 2, 0x24, 0]; 9];
    let script = Script::start(Manners { v5: true, answers, ..Manners::default() }).await;
    let good = Script::start(Manners { v5: true, ..Manners::default() }).await;
    let both = format!("{}\", \"{}", script.url(), good.url());
    let gateway = Gateway::with_broker(&both, "").started().await;
    send(&gateway, 10).await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 10.0).await;
    assert_eq!(script.look(|seen| seen.acked.len()), 0);
}
