use super::*;
use crate::cli::printed::Printed;
use clap::Parser;

#[derive(Debug, clap::Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn args(line: &str) -> Args {
    Cli::try_parse_from(["demo"].into_iter().chain(line.split_whitespace())).expect("valid arguments").args
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_shows_every_device_s_readings_and_leaves_nothing_behind() {
    let broker = Broker::start(0, 0).await.expect("free ports");
    let (out, err) = (Printed::default(), Printed::default());
    let streams = Streams { out: Box::new(out.clone()), err: Box::new(err.clone()) };
    let (_stop, stopped) = watch::channel(false);
    demo(&args("--devices 2 --duration 3s"), broker, streams, stopped).await.expect("it works");
    let (out, err) = (out.text(), err.text());
    for device in ["demo/device-1", "demo/device-2"] {
        assert!(out.lines().filter(|line| line.contains(device)).count() >= 2, "{out}{err}");
    }
    assert!(err.contains(&format!("readings            {}", out.lines().count())), "{err}");
    assert!(err.contains("unexplained 0 (0 seqs)"), "{err}");
    let directory = err.split("log in ").nth(1).and_then(|rest| rest.lines().next()).expect("it was said");
    assert!(directory.contains("tidegate-demo-") && !Path::new(directory).exists(), "{directory}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_demo_ends_well() {
    let broker = Broker::start(0, 0).await.expect("free ports");
    let out = Printed::default();
    let streams = Streams { out: Box::new(out.clone()), err: Box::new(std::io::sink()) };
    let (stop, stopped) = watch::channel(false);
    let args = args("");
    let interrupt = async {
        while out.text().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        stop.send_replace(true);
    };
    let (outcome, ()) = tokio::join!(demo(&args, broker, streams, stopped), interrupt);
    outcome.expect("it works");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("it is bound").port();
    let why = Broker::start(port, 0).await.expect_err("it is taken").to_string();
    assert!(why.contains(&format!("cannot listen on 127.0.0.1:{port}")), "{why}");
}
