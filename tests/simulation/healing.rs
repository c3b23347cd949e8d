//! The end of a seed: everything works again, and is asked what became of it.

use super::broker::Weather;
use super::disk::Faults;
use super::gateway::Gateway;
use super::world::World;
use std::time::Duration;
use tidegate::model::Presence;
use tokio::time::Instant;

/// How long everything may take to drain once it has healed.
const DRAIN_WITHIN: Duration = Duration::from_secs(1800);

impl World {
    /// Everything works again; nothing new is measured. One sink stays dead at
    /// first: the others must not need it.
    pub async fn heal(&mut self) {
        self.context.trace(format_args!("all heals"));
        self.vfs.disk().faults = Faults::default();
        self.bring_back();
        self.clock_due = None;
        self.sender.stop();
        self.plan.commands.enabled = true;
        self.context.machine(|machine| {
            machine.doubt(false);
            if !machine.is_set() {
                machine.set();
            }
        });
        let fine =
            Weather { up: true, latency: Duration::from_millis(5), lifetime: Duration::from_secs(1 << 30), window: 32 };
        for (name, controls) in &self.devices {
            if controls.is_revoked() {
                self.give_key(name);
                controls.revoke(false);
            }
            if controls.is_off() {
                controls.switch(&self.context, name, None);
            }
            controls.obey();
            controls.clear_lines();
            controls.set_pace(Duration::ZERO);
        }
        for (number, sink) in self.sinks.iter().enumerate() {
            let dead = number == 0 && self.sinks.len() > 1;
            sink.broker.restart(Weather { up: !dead, ..fine.clone() });
        }
        self.drain(1, "while one is dead").await;
        self.sinks[0].broker.restart(fine);
        self.drain(0, "when all works").await;
        // A restart must not take anything back, and one of the devices may be gone by then.
        let told = self.present();
        if let Some(gateway) = self.gateway.take() {
            gateway.stop().await;
        }
        self.forget();
        let (name, controls) = self.devices[self.more.usize(..self.devices.len())].clone();
        let (gone, polite) = (self.more.u8(..3), self.more.bool());
        if gone == 0 {
            controls.switch(&self.context, &name, Some(polite));
        }
        self.start().await;
        self.check_restored(&told);
        if gone == 1 {
            self.pass(Duration::from_secs(5)).await;
            controls.switch(&self.context, &name, Some(polite));
        }
        self.drain(0, "after a restart").await;
        let (lossy, few_events) = self.context.oracle(|oracle| (oracle.lossy, oracle.few_events));
        for sink in &self.sinks {
            self.context.oracle(|oracle| oracle.account(&sink.name));
            if !few_events {
                self.settle_presence(&sink.name);
                self.context.oracle(|oracle| oracle.judge(oracle.orders.settle(&sink.name)));
            }
            if !lossy {
                self.context
                    .oracle(|oracle| oracle.settle(&sink.name, &self.plan.may_drop(), self.plan.keeps_alarms()));
                self.context.settle_boots(&sink.name);
            }
        }
    }

    /// Waits until devices are acknowledged and sinks have everything, all but the
    /// first `dead` sinks.
    async fn drain(&mut self, dead: usize, when: &str) {
        let dead = if self.sinks.len() > 1 { dead } else { 0 };
        let began = Instant::now();
        let mut quiet = 0;
        while quiet < 3 {
            self.pass(Duration::from_secs(2)).await;
            if self.is_violated() {
                return;
            }
            let sessions: Vec<_> =
                self.devices.iter().map(|(name, controls)| (name.clone(), controls.session())).collect();
            let unacked = self.context.oracle(|oracle| oracle.unacked(&sessions));
            let pending: Vec<i64> = match &self.gateway {
                Some(gateway) => self.sinks[dead..].iter().map(|sink| gateway.pending(&sink.name)).collect(),
                None => vec![-1],
            };
            let posted = self.sinks[dead..].iter().any(|sink| !sink.broker.mailbox.is_empty());
            let is_quiet = self.gateway.as_ref().is_some_and(Gateway::is_quiet) && !posted;
            let is_back = self.devices.iter().all(|(name, controls)| {
                let seen = self.gateway.as_ref().is_some_and(|gateway| gateway.sees(name));
                (controls.is_off() || controls.is_there()) && controls.is_there() == seen
            });
            let done = unacked == 0 && pending.iter().all(|pending| *pending == 0) && is_quiet && is_back;
            quiet = if done { quiet + 1 } else { 0 };
            if began.elapsed() > DRAIN_WITHIN {
                let health = self.gateway.as_ref().map(|gateway| (gateway.log.health(), gateway.unrest()));
                self.context.oracle(|oracle| {
                    oracle.violated(format!(
                        "not drained {when}: {unacked} readings are not acknowledged, {pending:?} wait for the sinks, \
                         letters wait: {posted}, devices are back: {is_back}; {health:?}"
                    ));
                });
                return;
            }
        }
        self.context.trace(format_args!("drained {when}"));
    }

    /// How each device is, and whether it must be known.
    fn present(&self) -> Vec<(String, Presence, bool)> {
        let mut devices = Vec::new();
        for (name, controls) in &self.devices {
            let is_there = controls.is_there();
            let state = |there: bool| if there { Presence::Online } else { Presence::Offline };
            devices.push((name.clone(), state(is_there), true));
            // A device behind another one that was never there is not known.
            let subs = controls.subs().into_iter().map(|(sub, online)| (format!("{name}/{sub}"), is_there && online));
            devices.extend(subs.map(|(sub, there)| (sub, state(there), there)));
        }
        devices
    }

    /// What was told of devices last is how they are.
    fn settle_presence(&self, sink: &str) {
        for (device, state, known) in self.present() {
            self.context.oracle(|oracle| {
                let verdict = oracle.roll.settle(sink, &device, state, known);
                oracle.judge(verdict);
            });
        }
    }

    /// The log knew of devices what was told of them.
    fn check_restored(&self, told: &[(String, Presence, bool)]) {
        let Some(gateway) = &self.gateway else { return };
        for (device, state, known) in told {
            let found = gateway.restored.iter().find(|status| status.device.as_str() == device);
            let right = found.map_or(!known, |found| found.state == *state && !found.flapping);
            if !right {
                let what = format!("the log knew of {device}, which is {state:?}: {found:?}");
                self.context.oracle(|oracle| oracle.judge(Err(what)));
            }
        }
    }
}
