//! How many readings a second are acknowledged while something stands still that the gateway
//! uses, and whether health is answered then.

use super::faults;
use super::support::broker::Broker;
use super::support::device::Talk;
use super::support::gateway::{Gateway, get};
use super::support::mount::Ext4Disk;
use super::support::web::Web;
use super::trial::{HTTP, Trial};
use std::fs::File;
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// How long readings are counted.
const WHILE: Duration = Duration::from_secs(2);

/// How long a batch of readings may take, and an answer about health.
const PATIENCE: Duration = Duration::from_secs(10);

/// Meanwhile it is at least a so-manieth of what it was.
const SHARE: f64 = 20.0;

/// A device, and how far it is.
struct Pacer {
    talk: Talk<TcpStream>,
    sent: u64,
}

impl Pacer {
    async fn connect(address: &str) -> Pacer {
        let (talk, welcome) = Talk::welcomed(address, "pump-1", fastrand::u64(..)).await;
        Pacer { talk, sent: welcome.settled }
    }

    /// Readings a second; an error if they are not acknowledged.
    async fn pace(&mut self) -> Result<f64, String> {
        const BATCH: u64 = 500;
        let (began, before) = (Instant::now(), self.sent);
        while began.elapsed() < WHILE {
            self.talk.readings(1, self.sent + 1, BATCH).await;
            self.sent += BATCH;
            let acked = tokio::time::timeout(PATIENCE, self.talk.acked(self.sent)).await;
            acked.map_err(|_| format!("not acknowledged within {PATIENCE:?}"))?;
        }
        Ok((self.sent - before) as f64 / began.elapsed().as_secs_f64())
    }
}

/// How long health takes to be answered.
async fn health(address: &str) -> Result<Duration, String> {
    let began = Instant::now();
    match tokio::time::timeout(PATIENCE, get(address, "/health/live")).await {
        Ok(Some((200, _))) => Ok(began.elapsed()),
        other => Err(format!("/health/live: {other:?}")),
    }
}

/// Counts while `block` holds, until what it returned is dropped.
async fn measure<B>(
    trial: &mut Trial,
    what: &str,
    (tcp, http): (&str, &str),
    block: impl AsyncFnOnce() -> Result<B, String>,
) -> Option<B> {
    let mut pacer = Pacer::connect(tcp).await;
    let before = pacer.pace().await.expect("readings are acknowledged while nothing is blocked");
    let measured = async {
        let blocked = tokio::time::timeout(3 * PATIENCE, block()).await.map_err(|_| "a device hangs")??;
        let meanwhile = pacer.pace().await?;
        let answered = health(http).await?;
        println!(
            "{what} is blocked\n    {before:.0} readings/s before, {meanwhile:.0} meanwhile; health answers after {answered:.0?}"
        );
        match meanwhile * SHARE < before {
            true => Err(format!("{before:.0} readings/s before, {meanwhile:.0} meanwhile")),
            false => Ok(blocked),
        }
    };
    match measured.await {
        Ok(blocked) => Some(blocked),
        Err(why) => {
            trial.fails(&format!("{what} is blocked"), &why);
            None
        }
    }
}

/// Undone when dropped.
struct Undo(Command);

impl Drop for Undo {
    fn drop(&mut self) {
        let undone = self.0.status();
        assert!(undone.is_ok_and(|status| status.success()), "{:?}", self.0);
    }
}

/// Stopped, it reads nothing; there is more to say than fits its socket.
pub async fn journald(trial: &mut Trial) {
    let start = trial.starts_with(&format!("[gateway]\nlog_level = \"trace\"\n{}", faults::config("")));
    let journald = trial.machine.property("systemd-journald", "MainPID");
    let mut undo = trial.machine.command("kill");
    undo.args(["-CONT", &journald]);
    let mut stop = trial.machine.command("kill");
    stop.args(["-STOP", &journald]);
    let undo = Undo(undo);
    measure(trial, "journald", (faults::TCP, HTTP), async || {
        assert!(stop.status().is_ok_and(|status| status.success()), "journald can be stopped");
        talkative(faults::TCP).await
    })
    .await;
    drop(undo);
    trial.reads("journald is read again", start, &["lines", "dropped"]).await;
}

/// Has many lines written: what is kept of devices that come and go.
async fn talkative(address: &str) -> Result<(), String> {
    for number in 0..600 {
        let name = format!("guest-{number}");
        let hello = Talk::welcomed(address, &name, 1);
        tokio::time::timeout(PATIENCE, hello).await.map_err(|_| "a device is not welcomed".to_owned())?;
    }
    Ok(())
}

/// A pipe that nobody reads.
pub async fn standard_error(trial: &mut Trial) {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    let pipe = gateway.directory().join("gateway.log");
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.is_ok_and(|status| status.success()), "a pipe can be made");
    let _kept_open = File::options().read(true).write(true).open(&pipe).expect("a pipe");
    gateway.launch_with(&[("RUST_LOG", "debug")]);
    let at = (gateway.tcp_address(), gateway.http_address());
    let ready = async || get(&at.1, "/health/ready").await.is_some_and(|(status, _)| status == 200);
    super::support::eventually("it is ready", ready).await;
    measure(trial, "standard error", (&at.0, &at.1), async || talkative(&at.0).await).await;
}

/// A disk that neither takes nor refuses anything: what the broker confirms is acknowledged.
pub async fn disk(trial: &mut Trial) {
    let disk = Ext4Disk::mount().expect("root may mount one");
    let broker = Broker::start().await;
    let store = format!("[store]\nmax_size = \"8MiB\"\ndirectory = \"{}/log\"\n", disk.path().display());
    let gateway = Gateway::with_broker(&broker.gateway_url(), &store).started().await;
    gateway.connected().await;
    let at = (gateway.tcp_address(), gateway.http_address());
    let freeze = |how: &str| {
        let mut command = Command::new("fsfreeze");
        command.arg(how).arg(disk.path());
        command
    };
    measure(trial, "the disk", (&at.0, &at.1), async || {
        assert!(freeze("-f").status().is_ok_and(|status| status.success()), "a filesystem can be frozen");
        Ok(Undo(freeze("-u")))
    })
    .await;
}

/// As many requests that wait as there may be, with devices over WebSocket beside them.
pub async fn listener(trial: &mut Trial) {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    gateway.keys("[http]", "devices = true");
    let gateway = gateway.started().await;
    let at = (gateway.tcp_address(), gateway.http_address());
    let waiting = measure(trial, "the HTTP listener", (&at.0, &at.1), async || {
        let mut waiting = Vec::new();
        for number in 0..200 {
            let mut stream = TcpStream::connect(&at.1).await.map_err(|why| why.to_string())?;
            let body = "{\"name\":\"open\"}";
            let request = format!(
                "POST /api/v1/devices/valve-{number}/commands?wait=30s HTTP/1.1\r\nHost: localhost\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(request.as_bytes()).await.map_err(|why| why.to_string())?;
            waiting.push(stream);
        }
        Ok(waiting)
    })
    .await;
    let heard = tokio::time::timeout(PATIENCE, async {
        let (mut web, settled) = Web::welcomed(&at.1, "pump-2", 1).await;
        web.reading(settled + 1).await;
        web.acked(settled + 1).await;
    });
    if waiting.is_some() && heard.await.is_err() {
        trial.fails("the HTTP listener is blocked", "a device over WebSocket is not acknowledged");
    }
}
