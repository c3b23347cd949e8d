//! Limits repeated lines: some are logged at once, the others counted and summed up. Pure: times
//! are passed in.
//!
//! A line has a place in the code and a subject: a port, a device. Within a minute, the first few
//! lines of a place about one subject are logged, and some more about all its subjects. The others
//! are counted, and logged as one sum at the end of the minute, with their number and the facts of
//! the last one. While more come, only sums are logged, at growing intervals; after a quiet minute,
//! lines are logged at once again. One subject or place never hides another, until a place has more
//! subjects than its limit.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
/// Longest interval between the sums of continuing lines.
const LONGEST: Duration = Duration::from_secs(600);
/// Lines about one subject.
const OF_ONE: u32 = 5;
/// Lines of one place.
const OF_ALL: u32 = 30;
/// Subjects of one place that are distinguished.
const MAX_SUBJECTS: usize = 64;

/// Limits lines `T` of places `P`.
pub struct Limiter<P, T> {
    places: HashMap<P, Place<T>>,
}

struct Place<T> {
    all: Window<T>,
    each: HashMap<u64, Window<T>>,
}

/// Lines that were counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sum<T> {
    pub last: T,
    pub count: u64,
    /// The time in which they came.
    pub within: Duration,
}

struct Window<T> {
    began: Duration,
    length: Duration,
    /// When the last line came.
    heard: Duration,
    said: u32,
    counted: u64,
    last: Option<T>,
    /// The window before this one was too full.
    noisy: bool,
}

impl<P: Hash + Eq, T> Limiter<P, T> {
    pub fn new() -> Limiter<P, T> {
        Limiter { places: HashMap::new() }
    }

    /// Returns the line if it is to be logged now.
    pub fn offer(&mut self, place: P, subject: u64, line: T, now: Duration) -> Option<T> {
        let place = self.places.entry(place).or_insert_with(|| Place { all: Window::new(now), each: HashMap::new() });
        if place.all.is_over(now) && place.all.counted == 0 {
            place.all.renew(now);
        }
        if !place.each.contains_key(&subject) {
            if place.each.len() >= MAX_SUBJECTS {
                place.each.retain(|_, window| window.counted > 0 || !window.is_over(now));
            }
            if !place.all.has_room(OF_ALL) || place.each.len() >= MAX_SUBJECTS {
                place.all.count(line, now);
                return None;
            }
        }
        let window = place.each.entry(subject).or_insert_with(|| Window::new(now));
        if window.is_over(now) && window.counted == 0 {
            window.renew(now);
        }
        if !window.has_room(OF_ONE) {
            window.count(line, now);
            return None;
        }
        window.said += 1;
        window.heard = now;
        if !place.all.has_room(OF_ALL) {
            place.all.count(line, now);
            return None;
        }
        place.all.said += 1;
        place.all.heard = now;
        Some(line)
    }

    /// The sums that are due.
    pub fn due(&mut self, now: Duration) -> Vec<Sum<T>> {
        let mut sums = Vec::new();
        self.places.retain(|_, place| {
            place.each.retain(|_, window| window.look(now, &mut sums));
            let stays = place.all.look(now, &mut sums);
            if !stays {
                place.all.renew(now);
            }
            stays || !place.each.is_empty()
        });
        sums
    }

    /// When to call [`Limiter::due`] next; `None` without recent lines.
    pub fn next(&self) -> Option<Duration> {
        let windows = self.places.values().flat_map(|place| place.each.values().chain([&place.all]));
        windows.map(Window::end).min()
    }

    /// The sums of all counted lines, at the end.
    pub fn finish(&mut self, now: Duration) -> Vec<Sum<T>> {
        let places = std::mem::take(&mut self.places).into_values();
        let windows = places.flat_map(|place| place.each.into_values().chain([place.all]));
        windows.filter_map(|mut window| window.sum(now)).collect()
    }
}

impl<T> Window<T> {
    fn new(now: Duration) -> Window<T> {
        Window { began: now, length: MINUTE, heard: now, said: 0, counted: 0, last: None, noisy: false }
    }

    fn renew(&mut self, now: Duration) {
        *self = Window::new(now);
    }

    fn has_room(&self, most: u32) -> bool {
        !self.noisy && self.said < most
    }

    fn count(&mut self, line: T, now: Duration) {
        self.counted += 1;
        self.heard = now;
        self.last = Some(line);
    }

    /// The end of its time, or of a quiet minute.
    fn end(&self) -> Duration {
        (self.began + self.length).min(self.heard + MINUTE)
    }

    fn is_quiet(&self, now: Duration) -> bool {
        now >= self.heard + MINUTE
    }

    /// Whether only counted lines are left of it.
    fn is_over(&self, now: Duration) -> bool {
        self.is_quiet(now) || (!self.noisy && now >= self.end())
    }

    fn sum(&mut self, now: Duration) -> Option<Sum<T>> {
        let last = self.last.take()?;
        let count = std::mem::take(&mut self.counted);
        Some(Sum { last, count, within: now.saturating_sub(self.began) })
    }

    /// Appends its sum if that is due. False if the window may be dropped.
    fn look(&mut self, now: Duration, sums: &mut Vec<Sum<T>>) -> bool {
        if now < self.end() {
            return true;
        }
        let over = self.is_over(now);
        let sum = self.sum(now);
        if self.is_quiet(now) || (over && sum.is_none()) {
            sums.extend(sum);
            return false;
        }
        self.noisy = true;
        self.began = now;
        self.length = (self.length * if sum.is_some() { 2 } else { 1 }).min(LONGEST);
        sums.extend(sum);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Records the numbers that are logged, and `count@last` of sums, while time passes.
    struct World {
        limiter: Limiter<&'static str, u64>,
        said: Vec<String>,
        now: Duration,
    }

    impl World {
        fn new() -> World {
            World { limiter: Limiter::new(), said: Vec::new(), now: seconds(1000) }
        }

        fn offer(&mut self, place: &'static str, subject: u64, line: u64) {
            self.said.extend(self.limiter.offer(place, subject, line, self.now).map(|line| line.to_string()));
        }

        /// Time passes, and sums are logged when they are due.
        fn pass(&mut self, time: Duration) {
            let until = self.now + time;
            while let Some(next) = self.limiter.next().filter(|next| *next <= until) {
                self.now = self.now.max(next);
                self.sum();
            }
            self.now = until;
        }

        fn sum(&mut self) {
            let sums = self.limiter.due(self.now);
            self.said.extend(sums.iter().map(|sum| format!("{}@{} in {}s", sum.count, sum.last, sum.within.as_secs())));
            assert!(self.limiter.next().is_none_or(|next| next > self.now), "nothing more is due");
        }

        fn said(&mut self) -> Vec<String> {
            std::mem::take(&mut self.said)
        }
    }

    #[test]
    fn the_first_few_are_said_and_the_others_summed_up_with_the_last_one() {
        let mut world = World::new();
        for line in 1..=58 {
            world.offer("opened", 1, line);
            world.pass(seconds(1));
        }
        assert_eq!(world.said(), ["1", "2", "3", "4", "5"]);
        world.pass(seconds(2));
        assert_eq!(world.said(), ["53@58 in 60s"]);
    }

    #[test]
    fn what_goes_on_is_summed_up_at_growing_distances_and_heard_again_after_a_minute_of_quiet() {
        let mut world = World::new();
        for line in 0..3600 {
            world.offer("opened", 1, line);
            world.pass(seconds(1));
        }
        let said = world.said();
        assert_eq!(said.len(), 5 + 8, "{said:?}");
        assert!(said.last().is_some_and(|last| last.starts_with("600@")), "{said:?}");
        world.pass(seconds(60));
        assert_eq!(world.said().len(), 1, "the rest, a minute after the last");
        world.offer("opened", 1, 9999);
        assert_eq!(world.said(), ["9999"]);
    }

    #[test]
    fn a_single_one_among_the_noise_is_said_within_a_minute() {
        let mut world = World::new();
        for line in 0..600 {
            world.offer("opened", 1, line);
            world.pass(seconds(1));
        }
        world.pass(seconds(30));
        world.said();
        world.offer("opened", 1, 777);
        world.pass(seconds(60));
        assert!(world.said().last().is_some_and(|last| last.contains("@777 ")));
    }

    #[test]
    fn what_comes_seldom_is_said_as_it_comes() {
        let mut world = World::new();
        for line in 0..100 {
            world.offer("opened", 1, line);
            world.pass(seconds(15));
        }
        assert_eq!(world.said().len(), 100);
        world.pass(seconds(120));
        assert!(world.limiter.places.is_empty() && world.limiter.next().is_none(), "nothing is left of it");
    }

    #[test]
    fn neither_one_thing_nor_one_place_hides_another() {
        let mut world = World::new();
        for line in 0..1000 {
            world.offer("opened", 1, line);
        }
        world.said();
        world.offer("opened", 2, 5000);
        world.offer("vanished", 1, 6000);
        assert_eq!(world.said(), ["5000", "6000"]);
    }

    #[test]
    fn things_without_end_are_summed_up_together_and_take_no_memory() {
        let mut world = World::new();
        for minute in 0..20 {
            for line in 0..10_000 {
                world.offer("connected", minute * 10_000 + line, line);
            }
            assert!(world.limiter.places["connected"].each.len() <= MAX_SUBJECTS);
            world.pass(seconds(30));
        }
        let said = world.said();
        let sums = said.iter().filter(|line| line.contains('@')).count();
        assert_eq!((said.len() - sums, sums), (OF_ALL as usize, 3), "{said:?}");
    }

    #[test]
    fn every_line_is_said_or_counted_whatever_comes_when() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut world = World::new();
            let mut offered = 0;
            for line in 0..2000 {
                let place = ["a", "b", "c"][random.usize(..3)];
                world.offer(place, random.u64(..200), line);
                offered += 1;
                match random.u8(..10) {
                    0 => world.pass(Duration::from_millis(random.u64(..90_000))),
                    // The caller of `due` may be late.
                    1 => world.now += Duration::from_millis(random.u64(..90_000)),
                    _ => {}
                }
            }
            let mut heard = 0;
            for sum in world.limiter.finish(world.now) {
                heard += sum.count;
            }
            for said in world.said() {
                heard += said.split_once('@').map_or(1, |(count, _)| count.parse::<u64>().expect("a number"));
            }
            assert_eq!(heard, offered, "seed {seed}");
        }
    }
}
