//! The dialogues of `tests/conformance/`, run in every way, and the table of RFC 5321 that cites them.
mod common;

#[path = "conformance/check.rs"]
mod check;
#[path = "conformance/dialogue.rs"]
mod dialogue;
#[path = "conformance/driver.rs"]
mod driver;
#[path = "conformance/session.rs"]
mod session;
#[path = "conformance/sink.rs"]
mod sink;
#[path = "common/tls.rs"]
mod tls;
#[path = "conformance/wire.rs"]
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use dialogue::{Dialogue, Settings, Store};
use session::Split;

/// Dialogues whose client says more than this are cut at chosen places instead of everywhere: all the
/// runs of a dialogue together read the square of its length.
const CUT_EVERYWHERE_BYTES: usize = 3_000;
/// What all the runs of one such dialogue may read.
const CUT_BUDGET_BYTES: usize = 8 << 20;

fn dialogues() -> Vec<Dialogue> {
    dialogue::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance"))
}

/// Fails with all that is wrong, not only with the first.
fn report(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "{} failures:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn there_are_many_dialogues() {
    let count = dialogues().len();
    println!("{count} dialogues");
    assert!(count >= 150, "{count}");
}

#[test]
fn against_the_session_whole() {
    let failed = |dialogue: &Dialogue| {
        let why = session::compare(dialogue, &session::run(dialogue, Split::Whole)).err()?;
        Some(format!("{} {}: {why}", dialogue.place, dialogue.name))
    };
    report(dialogues().iter().filter_map(failed).collect());
}

#[test]
fn against_the_session_split_at_every_byte() {
    let mut wrong = Vec::new();
    for dialogue in dialogues() {
        let whole = session::run(&dialogue, Split::Whole);
        let splits = cuts(&dialogue).into_iter().map(Split::At).chain([Split::Bytes]);
        for split in splits {
            if session::run(&dialogue, split) != whole {
                wrong.push(format!("{} {}: {split:?}", dialogue.place, dialogue.name));
            }
        }
    }
    report(wrong);
}

/// Where a dialogue is cut: everywhere, or if it is long, around the starts of its turns and around as many
/// line ends and other places as the budget allows.
fn cuts(dialogue: &Dialogue) -> Vec<usize> {
    let client: Vec<u8> = dialogue.turns.iter().flat_map(|turn| turn.client.clone()).collect();
    if client.len() <= CUT_EVERYWHERE_BYTES {
        return (0..=client.len()).collect();
    }
    let mut chosen = BTreeSet::new();
    let mut around = |at: usize| chosen.extend(at.saturating_sub(4)..=(at + 4).min(client.len()));
    let mut start = 0;
    for turn in &dialogue.turns {
        start += turn.client.len();
        around(start);
    }
    let room = CUT_BUDGET_BYTES / client.len() / 20;
    let ends: Vec<usize> = (1..=client.len()).filter(|at| client[at - 1] == b'\n').collect();
    ends.iter().step_by(1 + ends.len() / (room + 1)).for_each(|end| around(*end));
    (0..client.len()).step_by(1 + client.len() / (room + 1)).for_each(&mut around);
    chosen.into_iter().collect()
}

#[test]
fn over_loopback() {
    all_over_loopback(false);
}

#[test]
fn over_loopback_through_tls() {
    all_over_loopback(true);
}

fn all_over_loopback(through_tls: bool) {
    let mut sites = wire::Sites::new(through_tls);
    let mut wrong = Vec::new();
    for dialogue in dialogues() {
        let by_driver = dialogue.turns.iter().any(|turn| turn.driver.is_some());
        let about_tls = dialogue.settings.tls
            || dialogue.turns.iter().any(|turn| memchr::memmem::find(&turn.client, b"STARTTLS").is_some());
        if by_driver || dialogue.settings.store != Store::Ok || (through_tls && about_tls) {
            continue;
        }
        if let Err(why) = sites.run(&dialogue) {
            wrong.push(format!("{} {}: {why}", dialogue.place, dialogue.name));
        }
    }
    wrong.extend(sites.finish());
    report(wrong);
}

/// Every dialogue is named in the table, every name in the table is a dialogue's, and every claim names what
/// shows it.
#[test]
fn the_table_and_the_dialogues_name_each_other() {
    let read = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
        std::fs::read_to_string(path).expect("the table is there")
    };
    let table = read("RFC5321.md") + &read("EXTENSIONS.md");
    let rows = || table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| §"));
    let mut wrong = Vec::new();
    let mut named = BTreeMap::new();
    for row in rows() {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [section, _, state, dialogues] = cells[..] else {
            wrong.push(format!("a row has four cells: {row}"));
            continue;
        };
        let known = ["done", "not applicable", "deliberately different"].iter().any(|s| state.starts_with(s));
        if !known || !section.starts_with(|c: char| c.is_ascii_digit()) {
            wrong.push(format!("a row begins with its section and has a known state: {row}"));
        }
        let names = || dialogues.split('`').skip(1).step_by(2);
        names().for_each(|name| *named.entry(name.to_string()).or_insert(0) += 1);
        // What is claimed is shown: by a dialogue, or by code or tests that the row names.
        let files: Vec<&str> = files_in(state).collect();
        if !state.starts_with("not applicable") && names().next().is_none() && files.is_empty() {
            wrong.push(format!("nothing shows it: {row}"));
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let lacks = |file: &&&str| !root.join(file).exists() && !root.join(format!("{file}.rs")).exists();
        wrong.extend(files.iter().filter(lacks).map(|file| format!("there is no {file}: {row}")));
    }
    let known: BTreeSet<String> = dialogues().into_iter().map(|dialogue| dialogue.name).collect();
    wrong.extend(named.keys().filter(|n| !known.contains(*n)).map(|n| format!("no dialogue is called {n}")));
    wrong.extend(
        known.iter().filter(|n| !named.contains_key(*n)).map(|n| format!("the table leaves out {n}")),
    );
    report(wrong);
}

/// Paths of the project in a text.
fn files_in(text: &str) -> impl Iterator<Item = &str> {
    text.split([' ', '(', ')', ',', ';', '`'])
        .map(|word| word.trim_end_matches('.'))
        .filter(|word| ["src/", "tests/", "docs/", "scripts/"].iter().any(|folder| word.starts_with(folder)))
}

/// The checkers can fail: each of these dialogues claims something that is not so.
#[test]
fn false_dialogues_fail() {
    let false_ones = [
        "hello\nC: NOOP\nS: 251 *",
        "hello\nC: NOOP\nS: 250 2.0.0 Not ok",
        "hello\nC: NOOP",
        "hello\nC: NOOP\nS: 250 *\nS: 250 *",
        "hello\nC: QUIT\nS: 221 *",
        "hello\nC: NOOP\nS: 250 *\nclose",
        "C: EHLO c\nS: 250 mta.test",
        "C: EHLO c\nS: 250-mta.test\nS+ SIZE 7",
        "C: EHLO c\nS: 250-mta.test\nS- PIPELINING",
        "hello\nenvelope\ndata\nC: .\nS: 250 *",
        "hello\nenvelope\ndata\nC: .\nS: 250 *\nmessage\nsender: x@y",
        "hello\nenvelope\ndata\nC: .\nS: 250 *\nmessage\nrecipient: x@y",
        "hello\nenvelope\ndata\nC: .\nS: 250 *\nmessage\nkind: 8BITMIME",
        "hello\nenvelope\ndata\nC: .\nS: 250 *\nmessage\nmail: SMTPUTF8",
        "hello\nenvelope\ndata\nC: .\nS: 250 *\nmessage\nrcpt: NOTIFY=NEVER",
        "hello\nenvelope\ndata\nC: .\nS: 250 *\nmessage\nbody: x",
        "hello\nenvelope\ndata\nC: .\nS: 250 *\nmessage\nmessage",
        "set max-recipients = 0\nhello\nenvelope",
        "set relay = no\nhello\nenvelope",
        "set store = full\nhello\nenvelope\ndata\nC: .\nS: 250 *\nmessage",
        "hello\nC: STARTTLS\nS: 220 *",
        "set tls = yes\nC: EHLO c\nS: 250-mta.test\nS- STARTTLS",
        "set users = yes\nhello\nstarttls\nhello\nC: AUTH PLAIN AHVzZXIAd3Jvbmc=\nS: 235 *",
        "S: 220 other.test *",
    ];
    for text in false_ones {
        let dialogue = parse_one(text).unwrap_or_else(|error| panic!("{error}"));
        let happened = session::run(&dialogue, Split::Whole);
        assert!(session::compare(&dialogue, &happened).is_err(), "{text}");
    }
}

fn parse_one(text: &str) -> Result<Dialogue, String> {
    let text = format!("== x\n# §1 \"x\"\n{text}\n");
    dialogue::parse("text", &text).map(|mut all| all.remove(0))
}

#[test]
fn files_that_do_not_follow_the_format_are_refused() {
    let wrong = [
        "",
        "hallo",
        "C: x\\q",
        "C: x\\x0g",
        "C: \\{3 x",
        "C: \\{x x}",
        "S: two",
        "hello\nstarttls",
        "S x: 250 x",
        "close\nC: x",
        "C: x\nS: 250 x\nclose\nC: y",
        "hello\nset relay = no",
        "set relay = maybe",
        "set colour = red",
        "sender: x",
        "D: bored",
        "S...",
        "C: DATA\nS: 354 *\nmessage\nfolder: x",
        "C: .\nhangup\nmessage",
    ];
    for text in wrong {
        assert!(parse_one(text).is_err(), "{text}");
    }
    for text in ["C: x\n", "== x\nC: x", "== x\n# what it shows\nC: x", "== X\n# §1 \"\"\nC: x"] {
        assert!(dialogue::parse("text", text).is_err(), "{text}");
    }
}

#[test]
fn the_format_says_what_it_means() {
    let text =
        "set relay = no\nset max-recipients = 7\nC: a\\t\\x41\\0\\\\\\{2 n\\#}\\\nC: b\nS x2: 250 *\nclose";
    let dialogue = parse_one(text).expect("well-formed");
    let settings = Settings { may_relay: false, max_recipients: 7, ..Settings::default() };
    assert_eq!(dialogue.settings, settings);
    // The greeting comes first of itself.
    let [greeting, turn] = &dialogue.turns[..] else { panic!("{:?}", dialogue.turns) };
    assert!(greeting.replies[0].fits(&[b"220 mta.test x"]) && !greeting.replies[0].fits(&[b"220 mta"]));
    assert_eq!(turn.client, b"a\tA\0\\n1n2b\r\n");
    assert_eq!((turn.replies.len(), turn.ends), (2, Some(dialogue::End::Close)));
}
