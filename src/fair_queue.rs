//! A fair queue of many sources that wait for shares of the same resource. Pure.
//!
//! Start-time fair queueing (Goyal, Vin and Cheng, 1996): each source pays for its grants, in
//! bytes, and the source that was granted least goes first. Virtual time is what a source was
//! granted that has waited all along; a source that comes later begins there, so that an idle
//! source saves up no claim, and does not wait behind the busy ones.
//!
//! ```text
//!   start  = max(virtual time, the source's last finish)
//!   finish = start + bytes
//!   the least start goes first, and virtual time moves there
//! ```
//!
//! Deficit round robin needs to know the backlog of each source; here a source requests one grant
//! at a time, and its backlog waits in its socket. The guarantee is the same: of two sources that
//! wait all the time, one is granted no more than the other, except for the largest request of
//! each, whatever the sizes of their requests and however many others wait.

use std::collections::BTreeMap;

/// A request up to this many bytes is little: it goes before others with the same start, and may
/// use the room that is reserved for such requests.
pub const LITTLE: usize = 4 * 1024;

/// The grants of a source so far, in virtual time; kept by the source. The default is a source
/// without grants.
#[derive(Debug, Default)]
pub struct Account {
    finish: u64,
    /// The position of its current or last request.
    place: Option<Place>,
}

/// The order of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    start: u64,
    /// Little ones first.
    large: bool,
    arrival: u64,
}

/// The request that is granted next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its size.
    pub bytes: usize,
    /// Whether it is little, and its source was granted no more than others.
    pub little: bool,
}

/// Requests of sources, each identified by a `T`.
#[derive(Debug)]
pub struct FairQueue<T> {
    virtual_time: u64,
    arrivals: u64,
    requests: BTreeMap<Place, (usize, T)>,
}

impl<T> Default for FairQueue<T> {
    fn default() -> FairQueue<T> {
        FairQueue { virtual_time: 0, arrivals: 0, requests: BTreeMap::new() }
    }
}

impl<T> FairQueue<T> {
    /// Whether no request waits.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether a request of the source waits.
    pub fn is_waiting(&self, account: &Account) -> bool {
        account.place.is_some_and(|place| self.requests.contains_key(&place))
    }

    /// Queues a request of `source` for `bytes`, in place of its earlier one.
    pub fn wait(&mut self, account: &mut Account, bytes: usize, source: T) {
        self.cancel(account);
        self.arrivals += 1;
        let large = !self.is_little(account, bytes);
        let place = Place { start: self.charge(account, bytes), large, arrival: self.arrivals };
        account.place = Some(place);
        self.requests.insert(place, (bytes, source));
    }

    /// Removes the source's request, which costs nothing. False if there was none.
    pub fn cancel(&mut self, account: &mut Account) -> bool {
        let waiting = account.place.take().filter(|place| self.requests.remove(place).is_some());
        if let Some(place) = waiting {
            account.finish = place.start;
        }
        waiting.is_some()
    }

    /// Whether a request for `bytes` is little, and its source was granted no more than others.
    pub fn is_little(&self, account: &Account, bytes: usize) -> bool {
        bytes <= LITTLE && account.finish <= self.virtual_time
    }

    /// Whether a little request that arrived now would be granted next.
    pub fn little_goes_next(&self) -> bool {
        self.head().is_none_or(|head| !head.little)
    }

    /// The source takes `bytes` without waiting and pays for them. Returns the start.
    pub fn charge(&mut self, account: &mut Account, bytes: usize) -> u64 {
        let start = account.finish.max(self.virtual_time);
        account.finish = start.saturating_add(bytes as u64);
        start
    }

    /// Returns granted bytes that the source does not need.
    pub fn refund(&mut self, account: &mut Account, bytes: usize) {
        account.finish = account.finish.saturating_sub(bytes as u64);
    }

    /// The request that is granted next.
    pub fn head(&self) -> Option<Head> {
        let (place, (bytes, _)) = self.requests.first_key_value()?;
        Some(Head { bytes: *bytes, little: !place.large })
    }

    /// Removes the request that is granted next.
    pub fn grant(&mut self) -> Option<(usize, T)> {
        let (place, granted) = self.requests.pop_first()?;
        self.virtual_time = self.virtual_time.max(place.start);
        Some(granted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sources that request again after every grant.
    struct Sources {
        queue: FairQueue<usize>,
        accounts: Vec<Account>,
        granted: Vec<u64>,
    }

    impl Sources {
        fn new(count: usize) -> Sources {
            let accounts = (0..count).map(|_| Account::default()).collect();
            Sources { queue: FairQueue::default(), accounts, granted: vec![0; count] }
        }

        fn ask(&mut self, source: usize, bytes: usize) {
            self.queue.wait(&mut self.accounts[source], bytes, source);
        }

        fn grant(&mut self) -> usize {
            let (bytes, source) = self.queue.grant().expect("somebody waits");
            self.granted[source] += bytes as u64;
            source
        }
    }

    #[test]
    fn who_asks_for_little_goes_before_all_who_ask_for_much() {
        let mut sources = Sources::new(401);
        (0..400).for_each(|loud| sources.ask(loud, 60_000));
        for _ in 0..1000 {
            let loud = sources.grant();
            sources.ask(loud, 60_000);
        }
        assert!(sources.queue.little_goes_next());
        sources.ask(400, 300);
        assert_eq!(sources.queue.head(), Some(Head { bytes: 300, little: true }));
        assert_eq!(sources.grant(), 400);
        // Another request at once is more than the others were granted.
        sources.ask(400, 300);
        assert_ne!(sources.grant(), 400);
    }

    #[test]
    fn many_who_ask_for_little_do_not_starve_one_who_asks_for_much() {
        let mut sources = Sources::new(1001);
        sources.ask(1000, 60_000);
        sources.grant();
        sources.ask(1000, 60_000);
        (0..1000).for_each(|little| sources.ask(little, 300));
        let mut grants = 0;
        loop {
            let source = sources.grant();
            if source == 1000 {
                break;
            }
            sources.ask(source, 300);
            grants += 1;
        }
        assert!(grants <= 1000 * (60_000 / 300 + 1), "{grants}");
        let least = sources.granted[..1000].iter().min();
        assert!(least >= Some(&60_000), "{least:?}");
    }

    #[test]
    fn who_was_quiet_has_saved_up_nothing() {
        let mut sources = Sources::new(2);
        for _ in 0..1000 {
            sources.ask(0, 1000);
            sources.grant();
        }
        sources.ask(0, 1000);
        sources.ask(1, 10_000);
        assert_eq!(sources.grant(), 1);
        sources.ask(1, 10_000);
        assert!((0..9).all(|_| {
            let granted = sources.grant();
            sources.ask(granted, 1000);
            granted == 0
        }));
    }

    #[test]
    fn who_gives_up_pays_nothing() {
        let mut sources = Sources::new(2);
        sources.ask(0, 50_000);
        assert!(sources.queue.is_waiting(&sources.accounts[0]));
        assert!(sources.queue.cancel(&mut sources.accounts[0]) && sources.queue.is_empty());
        assert!(!sources.queue.cancel(&mut sources.accounts[0]));
        sources.ask(0, 100);
        sources.ask(1, 100);
        assert_eq!([sources.grant(), sources.grant()], [0, 1]);
        assert!(!sources.queue.is_waiting(&sources.accounts[0]));
    }

    proptest! {
        /// Among sources that wait all the time, grants are equal except for the largest request of
        /// each, and none waits while another gets more than that.
        #[test]
        fn shares_are_equal_and_nobody_waits_for_longer_than_a_round(
            sizes in proptest::collection::vec(1usize..70_000, 2..20),
            varied in 1usize..4,
            grants in 1usize..500,
        ) {
            let mut sources = Sources::new(sizes.len());
            let size = |source: usize, turn: usize| 1 + sizes[source] / (1 + turn % varied);
            (0..sizes.len()).for_each(|source| sources.ask(source, size(source, 0)));
            // What the others had been granted when each began to wait.
            let mut since: Vec<Vec<u64>> = vec![sources.granted.clone(); sizes.len()];
            for turn in 0..grants {
                let source = sources.grant();
                let own = sizes[source] as u64 + 1;
                for (other, before) in since[source].iter().enumerate().filter(|(other, _)| *other != source) {
                    let meanwhile = sources.granted[other] - before;
                    let most = own + 2 * (sizes[other] as u64 + 1);
                    prop_assert!(meanwhile <= most, "{meanwhile} of {most} while {source} waited for {other}");
                }
                for (one, granted) in sources.granted.iter().enumerate() {
                    for (other, less) in sources.granted.iter().enumerate() {
                        let bound = (sizes[one] + sizes[other] + 2) as u64;
                        prop_assert!(*granted <= less + bound, "{granted} and {less}");
                    }
                }
                sources.ask(source, size(source, turn));
                since[source] = sources.granted.clone();
            }
        }

        /// Sources begin, request, give up and leave in any order: each that waits is granted.
        #[test]
        fn everybody_has_a_turn_whoever_comes_and_goes(
            steps in proptest::collection::vec((0usize..12, 1usize..20_000, 0u8..4), 0..400),
        ) {
            let mut sources = Sources::new(13);
            sources.ask(12, 20_000);
            for (source, bytes, what) in steps {
                match what {
                    0 if sources.queue.is_waiting(&sources.accounts[source]) => {
                        sources.queue.cancel(&mut sources.accounts[source]);
                    }
                    1 if !sources.queue.is_empty() => {
                        if sources.grant() == 12 {
                            sources.ask(12, 20_000);
                        }
                    }
                    _ => sources.ask(source, bytes),
                }
                prop_assert!(sources.queue.is_waiting(&sources.accounts[12]));
            }
            // A new request for each grant: source 12 still gets its turn.
            let mut grants = 0;
            while sources.granted[12] == 0 && sources.grant() != 12 {
                sources.ask(grants % 12, 20_000);
                grants += 1;
                prop_assert!(grants < 12 * 4, "{grants}");
            }
        }
    }
}
