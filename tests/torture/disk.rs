//! A disk with a volatile write cache, for a virtual machine: what was written since the
//! last flush is lost or torn when the power goes. It speaks NBD over a Unix socket.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

const SECTOR: usize = 512;
/// A flush takes up to so long, as on a card, and the power may go meanwhile.
const FLUSH_MS: u64 = 20;

/// What becomes of unflushed sectors when the power goes. Sectors are written whole or
/// not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// None was written.
    Gone,
    /// The first so many per cent, in order.
    First(u8),
    /// Each with this chance in per cent, in no order.
    Some(u8),
}

struct Medium {
    /// As the machine sees it.
    current: Vec<u8>,
    /// As it is without power.
    durable: Vec<u8>,
    /// In the order in which they were written.
    unflushed: Vec<(usize, [u8; SECTOR])>,
    /// Says that it flushed, and does not.
    lies: bool,
    /// There is no power.
    off: bool,
    flushes: u64,
}

pub struct Disk {
    /// What it was made with.
    empty: Vec<u8>,
    medium: Arc<Mutex<Medium>>,
    /// How many connections are open.
    users: watch::Receiver<usize>,
    _task: JoinSet<()>,
}

impl Disk {
    /// Serves an image's content at `socket`; the image itself stays as it is.
    pub fn start(image: &Path, socket: &Path, lies: bool) -> Disk {
        let empty = std::fs::read(image).expect("an image");
        let current = empty.clone();
        let medium = Medium { durable: current.clone(), current, unflushed: Vec::new(), lies, off: false, flushes: 0 };
        let medium = Arc::new(Mutex::new(medium));
        let listener = UnixListener::bind(socket).expect("a socket");
        let (count, users) = watch::channel(0);
        let mut task = JoinSet::new();
        let served = medium.clone();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (medium, count) = (served.clone(), count.clone());
                connections.spawn(async move {
                    count.send_modify(|count| *count += 1);
                    // It ends when the machine does.
                    let _ = serve(stream, &medium).await;
                    count.send_modify(|count| *count -= 1);
                });
            }
        });
        Disk { empty, medium, users, _task: task }
    }

    /// From now on nothing is flushed, nor said to be.
    pub fn switch_off(&self) {
        self.medium().off = true;
    }

    /// Waits until nobody is connected: everything on its way has arrived.
    pub async fn is_left(&mut self) {
        self.users.wait_for(|users| *users == 0).await.expect("the server runs");
    }

    /// Decides what the medium has after [`Disk::switch_off`], and switches it on again.
    /// Returns how many sectors were unflushed.
    pub fn cut(&self, fate: Fate, random: &mut fastrand::Rng) -> usize {
        let mut medium = self.medium();
        let unflushed = std::mem::take(&mut medium.unflushed);
        let count = unflushed.len();
        for (i, (at, sector)) in unflushed.into_iter().enumerate() {
            let written = match fate {
                Fate::Gone => false,
                Fate::First(percent) => i < count * usize::from(percent) / 100,
                Fate::Some(percent) => random.u8(..100) < percent,
            };
            if written {
                medium.durable[at..at + SECTOR].copy_from_slice(&sector);
            }
        }
        medium.current = medium.durable.clone();
        medium.off = false;
        count
    }

    /// Puts an empty one in its place, after [`Disk::switch_off`].
    pub fn renew(&self) {
        let mut medium = self.medium();
        medium.unflushed.clear();
        (medium.durable, medium.current) = (self.empty.clone(), self.empty.clone());
        medium.off = false;
    }

    /// Overwrites what a file system cannot do without: the superblock of ext4.
    pub fn ruin(&self) {
        let mut medium = self.medium();
        medium.durable[1024..2048].fill(0);
        medium.current = medium.durable.clone();
    }

    pub fn flushes(&self) -> u64 {
        self.medium().flushes
    }

    /// Leaves the disk as it is without power in a file.
    pub fn save(&self, image: &Path) {
        std::fs::write(image, &self.medium().durable).expect("room for an image");
    }

    fn medium(&self) -> MutexGuard<'_, Medium> {
        self.medium.lock().expect("no panic there")
    }
}

impl Medium {
    fn write(&mut self, at: usize, data: &[u8]) {
        self.current[at..at + data.len()].copy_from_slice(data);
        let sectors = data.as_chunks().0.iter().enumerate();
        self.unflushed.extend(sectors.map(|(i, sector)| (at + i * SECTOR, *sector)));
    }

    /// False if the power went before.
    fn flush(&mut self) -> bool {
        if self.off {
            return false;
        }
        self.flushes += 1;
        if !self.lies {
            for (at, sector) in std::mem::take(&mut self.unflushed) {
                self.durable[at..at + SECTOR].copy_from_slice(&sector);
            }
        }
        true
    }
}

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
const GO: u32 = 7;
const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const IS_UNSUPPORTED: u32 = 0x8000_0001;
/// The flags are valid; there is a write cache that can be flushed.
const FLAGS: u16 = 0b101;

async fn serve(stream: UnixStream, medium: &Mutex<Medium>) -> std::io::Result<()> {
    let size = medium.lock().expect("no panic there").current.len() as u64;
    let (from, mut to) = stream.into_split();
    let mut from = BufReader::with_capacity(1 << 16, from);
    to.write_all(b"NBDMAGICIHAVEOPT\0\x03").await?;
    from.read_u32().await?;
    loop {
        assert_eq!(from.read_u64().await?, OPTION_MAGIC, "an NBD option");
        let option = from.read_u32().await?;
        let mut data = vec![0; from.read_u32().await? as usize];
        from.read_exact(&mut data).await?;
        let answer = |kind: u32, data: &[u8]| {
            let mut answer = OPTION_REPLY.to_be_bytes().to_vec();
            for number in [option, kind, data.len() as u32] {
                answer.extend(number.to_be_bytes());
            }
            answer.extend(data);
            answer
        };
        if option != GO {
            to.write_all(&answer(IS_UNSUPPORTED, &[])).await?;
            continue;
        }
        let mut export = vec![0, 0];
        export.extend(size.to_be_bytes());
        export.extend(FLAGS.to_be_bytes());
        to.write_all(&[answer(3, &export), answer(1, &[])].concat()).await?;
        break;
    }
    loop {
        assert_eq!(from.read_u32().await?, REQUEST, "an NBD request");
        from.read_u16().await?;
        let kind = from.read_u16().await?;
        let handle = from.read_u64().await?;
        let at = usize::try_from(from.read_u64().await?).expect("within the disk");
        let length = from.read_u32().await? as usize;
        let mut reply = REPLY.to_be_bytes().to_vec();
        reply.extend(0u32.to_be_bytes());
        reply.extend(handle.to_be_bytes());
        match kind {
            READ => reply.extend(&medium.lock().expect("no panic there").current[at..at + length]),
            WRITE => {
                let mut data = vec![0; length];
                from.read_exact(&mut data).await?;
                medium.lock().expect("no panic there").write(at, &data);
            }
            FLUSH => {
                tokio::time::sleep(Duration::from_millis(fastrand::u64(..=FLUSH_MS))).await;
                if !medium.lock().expect("no panic there").flush() {
                    return Ok(());
                }
            }
            _ => return Ok(()),
        }
        to.write_all(&reply).await?;
    }
}
