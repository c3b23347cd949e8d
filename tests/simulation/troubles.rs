//! What the operator and fate do to the world.

use super::controls::Controls;
use super::disk::{Death, Faults};
use super::network::Line;
use super::plan::Trouble;
use super::reader::Reader;
use super::world::World;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tidegate::config::Authentication;
use tidegate::store::rename_sink;
use tokio::time::sleep;

/// Where the log is moved.
fn away(store: &Path) -> PathBuf {
    store.with_extension("away")
}

impl World {
    pub async fn trouble(&mut self, trouble: Trouble) {
        self.context.trace(format_args!("{trouble:?}"));
        match trouble {
            Trouble::Restart => {
                if let Some(gateway) = self.gateway.take() {
                    gateway.stop().await;
                }
                if self.vfs.disk().is_dead() {
                    self.revive();
                }
                self.forget();
                self.start().await;
            }
            Trouble::Kill | Trouble::PowerCut => {
                self.die(if trouble == Trouble::Kill { Death::Killed } else { Death::PowerCut }).await;
                let pause = Duration::from_millis(self.random.u64(1..5000));
                sleep(pause).await;
                self.start().await;
            }
            Trouble::DeathAtWork => {
                let death = if self.random.bool() { Death::Killed } else { Death::PowerCut };
                let changes = self.random.u64(..60);
                self.vfs.disk().light_fuse(changes, death);
            }
            Trouble::DiskErrors => {
                let mut chance = || [0, 0, 50, 1000, 10_000][self.random.usize(..5)];
                let faults = Faults {
                    write: chance(),
                    sync: chance(),
                    truncate: chance(),
                    open: chance(),
                    read: chance(),
                    ..self.vfs.disk().faults
                };
                let Faults { full, low, .. } = faults;
                let faults = if self.random.bool() { Faults { full, low, ..Faults::default() } } else { faults };
                self.context.trace(format_args!("{faults:?}"));
                self.vfs.disk().faults = faults;
            }
            Trouble::DiskFull => {
                let full = self.random.bool();
                self.context.trace(format_args!("the disk is full: {full}"));
                self.vfs.disk().faults.full = full;
            }
            Trouble::DiskLow => {
                let low = self.random.bool();
                self.context.trace(format_args!("the disk is low: {low}"));
                self.vfs.disk().faults.low = low;
            }
            Trouble::Line => {
                let (name, controls) = &self.devices[self.random.usize(..self.devices.len())];
                let line = [Line::Up, Line::Silent, Line::Cut][self.random.usize(..3)];
                controls.set_line(&self.context, name, line);
            }
            Trouble::Reboot => self.devices[self.random.usize(..self.devices.len())].1.reboot(),
            Trouble::Broker => {
                let weather = self.weather();
                self.sinks[self.random.usize(..self.sinks.len())].broker.set(weather);
            }
            Trouble::Pace => {
                let pace = if self.random.u8(..5) == 0 { Duration::ZERO } else { self.pace() };
                self.devices[self.random.usize(..self.devices.len())].1.set_pace(pace);
            }
            Trouble::Clock => {
                let trusted = self.random.bool();
                let years = self.random.i64(-60..60);
                let step = [0, 1_000_000, 3_600_000_000, 31_557_600_000_000][self.random.usize(..4)];
                self.context.machine(|machine| {
                    machine.doubt(!trusted);
                    machine.step(years * step);
                });
            }
            Trouble::Sinks => self.change_sinks().await,
            Trouble::Switch => {
                let (name, controls) = &self.devices[self.more.usize(..self.devices.len())];
                let off = if controls.is_off() { None } else { Some(self.more.bool()) };
                controls.switch(&self.context, name, off);
            }
            Trouble::Keys => self.change_keys(),
            Trouble::Image => self.image().await,
            Trouble::Pause => self.pause().await,
            Trouble::Copy => self.copy_log(),
            Trouble::Away => match self.away {
                true => self.bring_back(),
                false => {
                    let store = &self.plan.store.directory;
                    std::fs::rename(store, away(store)).expect("a directory that is there");
                    self.away = true;
                }
            },
            Trouble::Reader => {
                // It may fail to open, as the gateway may.
                self.reader = match self.reader.take() {
                    Some(_) => None,
                    None if self.away => None,
                    None => Reader::open(&self.plan.store.directory).ok(),
                };
                self.context.trace(format_args!("somebody reads: {}", self.reader.is_some()));
            }
        }
    }

    /// Nothing is left of the process that ended, nor of whoever else reads.
    pub fn forget(&mut self) {
        self.bring_back();
        self.vfs.forget();
    }

    /// What the operator moved away is where it was; nobody else reads.
    pub fn bring_back(&mut self) {
        self.reader = None;
        if std::mem::take(&mut self.away) {
            self.context.trace(format_args!("the log is back"));
            let store = &self.plan.store.directory;
            std::fs::rename(away(store), store).expect("a directory that was moved");
        }
    }

    /// The operator edits the configuration and restarts.
    async fn change_sinks(&mut self) {
        if let Some(gateway) = self.gateway.take() {
            gateway.stop().await;
        }
        if self.vfs.disk().is_dead() {
            self.revive();
        }
        self.forget();
        if self.more.u8(..4) == 0 {
            self.plan.commands.enabled ^= true;
            self.context.trace(format_args!("commands are taken: {}", self.plan.commands.enabled));
        }
        let index = self.random.usize(..self.sinks.len());
        match self.random.u8(..4) {
            0 if self.sinks.len() > 1 => {
                let gone = self.sinks.remove(index);
                self.context.trace(format_args!("{} is removed", gone.name));
                self.context.oracle(|oracle| oracle.remove_sink(&gone.name));
                self.sinks_away.push(gone);
            }
            1 => self.rename_sink(index),
            2 if self.sinks.len() < 4 && !self.sinks_away.is_empty() => {
                let back = self.sinks_away.swap_remove(self.random.usize(..self.sinks_away.len()));
                self.context.trace(format_args!("{} is back", back.name));
                self.context.oracle(|oracle| oracle.return_sink(&back.name));
                self.sinks.push(back);
            }
            _ if self.sinks.len() < 4 => {
                self.add_sink();
                self.context.trace(format_args!("a sink is added"));
            }
            _ => {}
        }
        self.start().await;
    }

    /// The gateway stands still for seconds to minutes, and its lines, devices and brokers do
    /// not. Nobody is told gone for that.
    async fn pause(&mut self) {
        let Some(gateway) = &self.gateway else { return };
        let time = Duration::from_millis([1500, 10_000, 45_000, 300_000][self.times.usize(..4)]);
        let time = time.mul_f64(0.5 + self.times.f64() / 2.0);
        let told = gateway.told_there();
        let there = |(name, controls): &&(String, Controls)| {
            controls.is_there()
                && !controls.is_off()
                && !controls.is_revoked()
                && controls.is_quiet()
                && told.contains(name)
        };
        let there: Vec<String> = self.devices.iter().filter(there).map(|(name, _)| name.clone()).collect();
        self.context.trace(format_args!("the gateway stands still for {time:?}; {there:?} are there"));
        let freezer = gateway.freezer.clone();
        let run = self.context.oracle(|oracle| oracle.roll.last_run());
        self.context.pauses_for(time);
        freezer.freeze();
        sleep(time).await;
        freezer.thaw();
        self.context.trace(format_args!("it goes on"));
        self.pass(time.min(Duration::from_secs(8))).await;
        let Some(gateway) =
            self.gateway.as_ref().filter(|_| self.context.oracle(|oracle| oracle.roll.last_run()) == run)
        else {
            return;
        };
        // What is put right as somebody looks is told a moment later.
        drop(gateway.told_there());
        sleep(Duration::from_millis(100)).await;
        let told = gateway.told_there();
        // A shorter one may be none to the gateway; who is gone then is gone for other reasons.
        let noticed = time >= Duration::from_secs(2);
        if let Some(name) = there.iter().find(|name| noticed && !told.contains(*name)) {
            let what = format!("{name} is told gone because the gateway stood still");
            self.context.oracle(|oracle| oracle.violated(what));
        }
    }

    /// The operator renames a sink, and says so to the log if that can be changed.
    fn rename_sink(&mut self, index: usize) {
        self.sinks_made += 1;
        let name = format!("sink{}", self.sinks_made);
        let before = self.sinks[index].name.clone();
        let faults = std::mem::take(&mut self.vfs.disk().faults);
        let renamed = loop {
            let renamed = rename_sink(&self.plan.store.directory, &before, &name);
            self.forget();
            match renamed {
                Ok(_) => break Ok(()),
                Err(_) if self.vfs.disk().is_dead() => self.revive(),
                // It was done before the machine died.
                Err(why) if why.to_string().starts_with("there is no sink") => break Ok(()),
                Err(why) => break Err(why.to_string()),
            }
        };
        self.vfs.disk().faults = faults;
        self.context.trace(format_args!("{before} becomes {name}: {}", renamed.is_ok()));
        if renamed.is_ok() {
            self.context.oracle(|oracle| oracle.rename_sink(&before, &name));
            let sink = &mut self.sinks[index];
            sink.broker = sink.broker.renamed(&name);
            sink.name = name;
        }
    }

    /// Takes the key of a device away, or gives it back.
    fn change_keys(&mut self) {
        // The keys lie beside the log.
        if self.plan.authentication == Authentication::None || self.away {
            return;
        }
        let (name, controls) = &self.devices[self.more.usize(..self.devices.len())];
        let revoked = controls.is_revoked();
        self.context.trace(format_args!("the key of {name} counts: {revoked}"));
        match revoked {
            true => self.give_key(name),
            false => self.keys.revoke(name).expect("the key is there"),
        }
        controls.revoke(!revoked);
    }
}
