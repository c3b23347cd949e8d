use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

const GRACE: Duration = Duration::from_secs(5);

fn line(epoch: u32) -> Line {
    Line { gateway: GatewayId::new("gw").expect("a valid name"), epoch: Epoch(epoch) }
}

/// Drives one line and collects its notices.
struct Test {
    gaps: Gaps,
    now: Duration,
    told: Vec<Notice>,
}

impl Test {
    fn new() -> Test {
        Test { gaps: Gaps::new(GRACE), now: Duration::ZERO, told: Vec::new() }
    }

    fn saw(mut self, seqs: impl IntoIterator<Item = u64>) -> Test {
        for seq in seqs {
            self.gaps.saw(&line(1), seq, self.now, &mut self.told);
        }
        self
    }

    fn explain(mut self, first: u64, last: u64, reason: &str) -> Test {
        self.gaps.explain(&line(1), (first, last), &reason.into(), self.now, &mut self.told);
        self
    }

    fn later(mut self, seconds: u64) -> Test {
        self.now += Duration::from_secs(seconds);
        self.gaps.tick(self.now, &mut self.told);
        self
    }

    /// Notices since the last call: first, last, and reason.
    fn told(&mut self) -> Vec<(u64, u64, String)> {
        let what = |what| match what {
            What::Missing => "missing".to_owned(),
            What::Explained(reason) => reason.to_string(),
            What::Filled => "filled".to_owned(),
        };
        self.told.drain(..).map(|notice| (notice.first, notice.last, what(notice.what))).collect()
    }

    fn totals(&self) -> ((u64, u64), (u64, u64)) {
        let Totals { explained, unexplained } = self.gaps.totals();
        ((explained.gaps, explained.seqs), (unexplained.gaps, unexplained.seqs))
    }
}

fn told(first: u64, last: u64, what: &str) -> (u64, u64, String) {
    (first, last, what.to_owned())
}

#[test]
fn the_first_seq_seen_starts_the_line() {
    let mut test = Test::new().saw([500, 501, 499, 300]).later(60);
    assert_eq!((test.told(), test.totals()), (vec![], ((0, 0), (0, 0))));
}

#[test]
fn readings_out_of_order_are_no_gap_unless_they_stay_away() {
    let mut test = Test::new().saw([1, 5, 3]).later(4).saw([4]).later(1);
    assert_eq!(test.told(), [told(2, 2, "missing")]);
    assert_eq!(test.totals(), ((0, 0), (1, 1)));
    let mut test = test.later(60);
    assert_eq!(test.told(), [], "it is told once");
}

#[test]
fn a_gap_that_was_told_of_and_is_filled_is_told_of_as_filled() {
    let mut test = Test::new().saw([1, 10]).later(5).saw([2, 3, 4, 7]);
    assert_eq!(test.told(), [told(2, 9, "missing"), told(2, 4, "filled"), told(7, 7, "filled")]);
    assert_eq!(test.totals(), ((0, 0), (2, 4)), "5 to 6 and 8 to 9");
}

#[test]
fn an_event_explains_the_gap_whenever_it_comes() {
    let before = Test::new().saw([1]).explain(2, 9, "restart").saw([10]).later(5);
    let meanwhile = Test::new().saw([1, 10]).later(1).explain(2, 9, "restart").later(4);
    for mut test in [before, meanwhile] {
        assert_eq!(test.told(), [told(2, 9, "restart")]);
        assert_eq!(test.totals(), ((1, 8), (0, 0)));
    }
    let mut after = Test::new().saw([1, 10]).later(5).explain(2, 9, "restart").later(60);
    assert_eq!(after.told(), [told(2, 9, "missing"), told(2, 9, "restart")]);
    assert_eq!(after.totals(), ((1, 8), (0, 0)));
}

#[test]
fn an_event_before_the_first_reading_explains_too() {
    let mut test = Test::new().explain(1, 100, "retention").saw([50, 101]).later(5);
    assert_eq!(test.told(), [told(51, 100, "retention")]);
}

#[test]
fn only_what_an_event_covers_is_explained() {
    let mut test = Test::new().saw([1, 10, 20]).explain(5, 14, "size").explain(13, 30, "late").saw([32]).later(5);
    let expected = [
        told(2, 4, "missing"),
        told(5, 9, "size"),
        told(11, 14, "size"),
        told(15, 19, "late"),
        told(21, 30, "late"),
        told(31, 31, "missing"),
    ];
    assert_eq!(test.told(), expected);
    assert_eq!(test.totals(), ((4, 24), (2, 4)));
}

#[test]
fn an_explained_gap_that_is_filled_is_not_missing() {
    let mut test = Test::new().explain(1, 9, "size").saw([1, 10]).saw(2..=9).later(5);
    assert_eq!((test.told(), test.totals()), (vec![], ((0, 0), (0, 0))));
}

#[test]
fn what_only_fills_opens_no_gap() {
    let mut test = Test::new().saw([1, 4]);
    for seq in [2, 100] {
        test.gaps.fill(&line(1), seq, &mut test.told);
    }
    assert_eq!(test.totals(), ((0, 0), (1, 1)));
    assert!(test.gaps.is_waiting());
    assert!(!test.explain(3, 3, "size").gaps.is_waiting());
}

#[test]
fn epochs_are_lines_of_their_own() {
    let mut test = Test::new().saw([1, 2]);
    test.gaps.saw(&line(2), 1_000, test.now, &mut test.told);
    let mut test = test.saw([3]).later(60);
    assert_eq!(test.told(), []);
}

#[test]
fn holes_are_bounded_and_those_forgotten_are_told_of() {
    let holes = MAX_HOLES as u64 + 10;
    let mut test = Test::new().saw((0..=holes).map(|n| n * 2));
    assert_eq!(test.told().len(), 10);
    assert_eq!((test.gaps.holes, test.totals().1), (MAX_HOLES, (holes, holes)));
}

#[test]
fn lines_are_bounded_and_what_they_missed_is_told_of() {
    let mut test = Test::new().saw([1, 3]);
    test.now += GRACE / 5;
    for epoch in 2..MAX_LINES as u32 + 5 {
        test.gaps.saw(&line(epoch), 1, test.now, &mut test.told);
    }
    assert_eq!(test.gaps.lines.len(), MAX_LINES);
    assert_eq!(test.told(), [told(2, 2, "missing")], "the first was quiet longest");
    assert_eq!(test.gaps.holes, 0);
}

#[test]
fn extreme_seqs_do_no_harm() {
    let mut test = Test::new().saw([0, u64::MAX]).explain(0, u64::MAX, "all").saw([1, u64::MAX - 1, u64::MAX]);
    test.gaps.finish(&mut test.told);
    assert_eq!(test.told(), [told(2, u64::MAX - 2, "all")]);
}

#[test]
fn notices_read_well() {
    let notice = |what| Notice { line: line(7), first: 2, last: 9, what }.to_string();
    assert_eq!(notice(What::Missing), "gap: gw epoch 7: seqs 2 to 9 (8) are missing, unexplained");
    assert_eq!(notice(What::Explained("size".into())), "gap: gw epoch 7: seqs 2 to 9 (8) are missing, explained: size");
    assert!(notice(What::Explained("a\x1b[2J".into())).ends_with("explained: \"a\\u{1b}[2J\""));
    assert_eq!(notice(What::Filled), "gap filled: gw epoch 7: seqs 2 to 9 (8) came after all");
}

#[derive(Debug, Clone)]
enum Step {
    Saw(u64),
    Explain(u64, u64),
    Later(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..60u64).prop_map(Step::Saw),
        1 => (0..60u64, 0..20u64).prop_map(|(first, more)| Step::Explain(first, first + more)),
        1 => (0..8u64).prop_map(Step::Later),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// In whatever order readings and events arrive: missing are the seqs not seen between first
    /// and highest, and explained those of them that an event covers.
    #[test]
    fn what_is_missing_is_what_a_set_says(steps in proptest::collection::vec(any_step(), 0..80)) {
        let (mut seen, mut explained, mut start) = (BTreeSet::new(), BTreeSet::new(), None);
        let mut test = Test::new();
        for step in steps {
            test = match step {
                Step::Saw(seq) => {
                    start.get_or_insert(seq);
                    seen.insert(seq);
                    test.saw([seq])
                }
                Step::Explain(first, last) => {
                    explained.extend(first..=last);
                    test.explain(first, last, "size")
                }
                Step::Later(seconds) => test.later(seconds),
            };
            let highest = seen.last().copied().unwrap_or(0);
            let missing: Vec<u64> = (start.unwrap_or(0)..=highest).filter(|seq| !seen.contains(seq)).collect();
            let missing = if seen.is_empty() { Vec::new() } else { missing };
            let with_reason = missing.iter().filter(|seq| explained.contains(*seq)).count() as u64;
            let ((_, got_explained), (_, got_unexplained)) = test.totals();
            prop_assert_eq!(got_explained, with_reason);
            prop_assert_eq!(got_unexplained, missing.len() as u64 - with_reason);
        }
    }
}
