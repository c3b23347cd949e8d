//! What happened in one seed or in many, for the report.

use super::oracle::Oracle;
use super::{orders, presence};
use std::fmt;
use std::ops::AddAssign;
use std::time::Duration;

#[derive(Debug, Default, Clone)]
pub struct Tally {
    pub seeds: u64,
    pub virtual_time: Duration,
    pub steps: u64,
    pub deliveries: u64,
    /// Readings that sinks missed and were told of when they came back.
    pub told_missing: u64,
    pub duplicates: u64,
    pub refused: u64,
    pub power_cuts: u64,
    pub kills: u64,
    pub disk_failures: u64,
    /// Copies of the log that were put back.
    pub images: u64,
    pub qualities: [u64; 3],
    pub orders: orders::Counts,
    pub presence: presence::Counts,
}

impl Tally {
    /// What the oracle has seen.
    pub fn of(oracle: &Oracle) -> Tally {
        let Oracle { deliveries, told_missing, duplicates, refused, qualities, .. } = *oracle;
        let (orders, presence) = (oracle.orders.counted(), oracle.roll.counts);
        Tally { deliveries, told_missing, duplicates, refused, qualities, orders, presence, ..Tally::default() }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.seeds += other.seeds;
        self.virtual_time += other.virtual_time;
        self.steps += other.steps;
        self.deliveries += other.deliveries;
        self.told_missing += other.told_missing;
        self.duplicates += other.duplicates;
        self.refused += other.refused;
        self.power_cuts += other.power_cuts;
        self.kills += other.kills;
        self.disk_failures += other.disk_failures;
        self.images += other.images;
        add(&mut self.qualities, other.qualities);
        self.orders += other.orders;
        self.presence += other.presence;
    }
}

/// Adds number by number.
pub fn add<const N: usize>(sums: &mut [u64; N], more: [u64; N]) {
    sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { deliveries, told_missing, duplicates, refused, power_cuts, kills, disk_failures, images, .. } =
            self;
        let [placed, untimed, flagged] = self.qualities;
        writeln!(
            f,
            "{deliveries} deliveries, {duplicates} of them again, {refused} times told of refused samples, {told_missing} readings missed by sinks that came back, {power_cuts} power cuts, {kills} kills, {images} old copies, {disk_failures} disk errors;"
        )?;
        writeln!(
            f,
            "times: {placed} found after the fact, {untimed} not known, {flagged} by a wrong clock of the device;"
        )?;
        let orders::Counts { given, again, confirmed, executed, ended } = self.orders;
        let [done, failed, rejected, expired, unreachable] = ended;
        writeln!(
            f,
            "commands: {given} given, {again} times again, {confirmed} confirmed, {executed} executed; {done} done, {failed} failed, {rejected} rejected, {expired} expired, {unreachable} unreachable;"
        )?;
        let presence::Counts { changes, idle, flapping, restarted, back } = self.presence;
        write!(
            f,
            "presence: {changes} changes told, {idle} idle, {flapping} flapping, {restarted} gone since a restart; {back} times back in time after one"
        )
    }
}
