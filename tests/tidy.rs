//! The rules of the house, checked: layers, headers, `unsafe`, sizes, forbidden words, documents.
//!
//! Owns: each rule as a function from text to complaints, so that each is also shown a small bad
//! example and proven able to fail. Promises: a complaint names file, line and what to do. Must not:
//! need anything but the source tree.
use std::fs;
use std::path::{Path, PathBuf};

/// Lines in one file; past it the file holds more than one noun.
const FILE_LINES: usize = 700;
/// Lines above an `unsafe` in which its reason must begin.
const SAFETY_LINES: usize = 8;

/// What each layer may import of the crate. Order: from the leaves up.
const LAYERS: &[(&str, &[&str])] = &[
    ("limits", &[]),
    ("clock", &["limits"]),
    ("mail", &["limits", "clock"]),
    ("smtp", LEAVES),
    ("spool", LEAVES),
    ("schedule", LEAVES),
    ("route", LEAVES),
    ("ring", &["limits", "clock"]),
    ("tls", LEAVES),
    ("auth", LEAVES),
    ("resolve", LEAVES),
    ("events", LEAVES),
    ("config", &["limits", "clock", "mail", "route", "schedule"]),
    ("control", &["limits", "clock", "mail", "config"]),
    ("worker", BELOW_WORKER),
    ("cli", EVERYTHING),
    ("lib", EVERYTHING),
    ("main", EVERYTHING),
];
const LEAVES: &[&str] = &["limits", "clock", "mail"];
const BELOW_WORKER: &[&str] = &[
    "limits", "clock", "mail", "smtp", "spool", "schedule", "route", "ring", "tls", "auth", "resolve",
    "events", "config", "control",
];
const EVERYTHING: &[&str] = &[
    "limits", "clock", "mail", "smtp", "spool", "schedule", "route", "ring", "tls", "auth", "resolve",
    "events", "config", "control", "worker", "cli",
];

/// Layers that take bytes and time as arguments.
const PURE: &[&str] = &["mail", "smtp", "spool", "schedule", "route"];
/// Words that a pure layer has no use for outside its tests.
const IMPURE_WORDS: &[&str] = &[
    "SystemTime",
    "Instant",
    "File",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "tokio",
    "tokio_uring",
    "spawn",
    "sleep",
];

/// One source file. `code` is `text` with comments and the contents of literals blanked out; lines
/// and columns stay.
struct Source {
    path: String,
    text: String,
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned(), code: blanked(text) }
    }

    /// The module under `src/` that the file belongs to; none for files elsewhere.
    fn layer(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        Some(inside.split('/').next()?.trim_end_matches(".rs"))
    }

    /// The code before the tests at its end.
    fn production(&self) -> &str {
        if self.path.ends_with("/tests.rs") || self.path.contains("/tests/") {
            return "";
        }
        self.code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default()
    }

    fn complaint(&self, at: usize, what: &str) -> String {
        format!("{}:{}: {what}", self.path, 1 + self.code[..at].matches('\n').count())
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every `.rs` file below `src/` and `loadgen/`.
fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = ["src", "loadgen"].map(|folder| root().join(folder)).into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the source tree is readable") {
            let path = entry.expect("the source tree is readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative =
                    path.strip_prefix(root()).expect("below the root").to_str().expect("UTF-8").to_owned();
                found.push(Source::new(&relative, &read(&relative)));
            }
        }
    }
    assert!(found.len() > 20, "the source tree was not found");
    found
}

/// Blanks comments and the contents of string and character literals, byte for byte.
fn blanked(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut i = 0;
    while i < bytes.len() {
        let end = match bytes[i] {
            b'/' if bytes[i..].starts_with(b"//") => i + find(&bytes[i..], b"\n"),
            b'/' if bytes[i..].starts_with(b"/*") => i + find(&bytes[i + 2..], b"*/") + 4,
            b'"' => string_end(bytes, i),
            b'r' if !is_word(bytes.get(i.wrapping_sub(1))) || bytes.get(i.wrapping_sub(1)) == Some(&b'b') => {
                raw_string_end(bytes, i)
            }
            b'\'' => character_end(bytes, i),
            _ => i,
        }
        .min(bytes.len());
        out[i..end].iter_mut().filter(|b| **b != b'\n').for_each(|b| *b = b' ');
        i = end.max(i + 1);
    }
    String::from_utf8(out).expect("only whole literals and comments were blanked")
}

/// Index of `needle`, or the length.
fn find(bytes: &[u8], needle: &[u8]) -> usize {
    bytes.windows(needle.len()).position(|window| window == needle).unwrap_or(bytes.len())
}

fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut i = start + 1;
    while i < bytes.len() && bytes[i] != b'"' {
        i += if bytes[i] == b'\\' { 2 } else { 1 };
    }
    i + 1
}

/// Behind `r"…"` or `r#"…"#`; `start` itself where none begins.
fn raw_string_end(bytes: &[u8], start: usize) -> usize {
    let hashes = bytes[start + 1..].iter().take_while(|b| **b == b'#').count();
    let open = start + 1 + hashes;
    if bytes.get(open) != Some(&b'"') {
        return start;
    }
    let close = [&b"\""[..], &b"#".repeat(hashes)].concat();
    open + 1 + find(&bytes[open + 1..], &close) + close.len()
}

/// Behind a character literal; `start` itself for a lifetime.
fn character_end(bytes: &[u8], start: usize) -> usize {
    if bytes.get(start + 1) == Some(&b'\\') {
        return start + 3 + find(&bytes[(start + 3).min(bytes.len())..], b"'") + 1;
    }
    let is_literal = bytes[start + 1..].iter().take(5).skip(1).position(|b| *b == b'\'');
    match is_literal {
        Some(0) => start + 3,
        Some(more) if bytes[start + 1] >= 0x80 => start + 3 + more,
        _ => start,
    }
}

fn is_word(byte: Option<&u8>) -> bool {
    byte.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_')
}

/// Where `word` stands as a whole word.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = code.as_bytes();
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |&at| !is_word(bytes.get(at.wrapping_sub(1))) && !is_word(bytes.get(at + word.len())))
}

/// The identifier that begins the text.
fn identifier(text: &str) -> &str {
    let end = text.bytes().position(|b| !is_word(Some(&b))).unwrap_or(text.len());
    &text[..end]
}

/// The names at the head of a path's rest: `a::b` gives `a`, `{a::b, c}` gives `a` and `c`.
fn heads(rest: &str) -> Vec<&str> {
    let rest = rest.trim_start();
    let Some(group) = rest.strip_prefix('{') else { return vec![identifier(rest)] };
    let mut names = vec![identifier(group.trim_start())];
    let mut depth = 0;
    for (at, byte) in group.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 0 => break,
            b'}' => depth -= 1,
            b',' if depth == 0 => names.push(identifier(group[at + 1..].trim_start())),
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

// ── The rules ────────────────────────────────────────────────────────────────────────────────────

/// Every file says first what it owns.
fn header(source: &Source) -> Vec<String> {
    if source.text.starts_with("//! ") {
        vec![]
    } else {
        vec![source.complaint(0, "must begin with a //! header")]
    }
}

/// Imports go down only.
fn layers(source: &Source) -> Vec<String> {
    let Some(layer) = source.layer() else {
        // The load tools: a parser's mistake common to both ends would cancel itself out.
        return words(&source.code, "ringpost")
            .filter(|at| source.code[at + "ringpost".len()..].starts_with("::"))
            .map(|at| source.complaint(at, "the load tools share no code with the server"))
            .collect();
    };
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == layer) else {
        return vec![
            source.complaint(0, "is a layer that tests/tidy.rs does not know: give it its place there"),
        ];
    };
    let is_forbidden = |name: &&str| {
        *name != layer && LAYERS.iter().any(|(known, _)| known == name) && !allowed.contains(name)
    };
    let depth = source.path.trim_end_matches("/mod.rs").matches('/').count();
    let mut complaints = Vec::new();
    for at in words(&source.code, "crate") {
        let Some(rest) = source.code[at + "crate".len()..].strip_prefix("::") else { continue };
        for name in heads(rest).into_iter().filter(is_forbidden) {
            complaints.push(source.complaint(at, &format!("{layer} must not import {name}")));
        }
    }
    for at in words(&source.code, "super") {
        let mut rest = &source.code[at..];
        let mut climbed = 0;
        while let Some(next) = rest.strip_prefix("super::") {
            rest = next;
            climbed += 1;
        }
        let begins = !source.code[..at].ends_with("super::");
        for name in heads(rest).into_iter().filter(|name| begins && climbed >= depth && is_forbidden(name)) {
            complaints.push(source.complaint(at, &format!("{layer} must not import {name}")));
        }
    }
    complaints
}

/// Protocol, spool format and scheduling are functions of bytes, state and time; io_uring stays in
/// its room.
fn purity(source: &Source) -> Vec<String> {
    let layer = source.layer().unwrap_or_default();
    let mut complaints = Vec::new();
    if PURE.contains(&layer) {
        for word in IMPURE_WORDS {
            let found = words(source.production(), word);
            complaints
                .extend(found.map(|at| source.complaint(at, &format!("{layer} is pure: no {word} here"))));
        }
    }
    if layer != "ring" {
        for word in ["tokio_uring", "io_uring"] {
            let found =
                words(&source.code, word).filter(|at| source.code[at + word.len()..].starts_with("::"));
            complaints.extend(found.map(|at| source.complaint(at, "io_uring belongs to src/ring")));
        }
    }
    complaints
}

/// `unsafe` stands in `src/ring` only, each with its reason.
fn safety(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    let lines: Vec<&str> = source.text.lines().collect();
    for at in words(&source.code, "unsafe") {
        if source.layer() != Some("ring") {
            complaints.push(source.complaint(at, "unsafe belongs to src/ring"));
            continue;
        }
        let line = source.code[..at].matches('\n').count();
        let above = &lines[line.saturating_sub(SAFETY_LINES)..=line];
        if !above.iter().any(|text| text.contains("SAFETY:") || text.contains("# Safety")) {
            complaints.push(source.complaint(at, "says why it is sound in a SAFETY comment above"));
        }
    }
    complaints
}

/// A file is one noun.
fn size(source: &Source) -> Vec<String> {
    match source.text.lines().count() {
        lines if lines > FILE_LINES => {
            vec![source.complaint(0, &format!("has {lines} lines: divide it, {FILE_LINES} are allowed"))]
        }
        _ => vec![],
    }
}

/// Nothing unfinished, nothing left over from debugging, no test switched off.
fn unfinished(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    for word in ["todo!", "unimplemented!", "dbg!", "#[ignore"] {
        for (at, _) in source.code.match_indices(word) {
            complaints.push(source.complaint(at, &format!("{word} must not stay")));
        }
    }
    // In comments, which `code` has not.
    for (number, line) in source.text.lines().enumerate() {
        for word in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("CON", "TRACT")] {
            if words(line, word).next().is_some() {
                complaints.push(format!("{}:{}: {word} must not stay", source.path, number + 1));
            }
        }
    }
    complaints
}

fn check(rule: fn(&Source) -> Vec<String>) {
    let complaints: Vec<String> = sources().iter().flat_map(rule).collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn every_file_has_a_header() {
    check(header);
}

#[test]
fn imports_go_down_only() {
    check(layers);
}

#[test]
fn pure_layers_are_pure() {
    check(purity);
}

#[test]
fn unsafe_is_confined_and_explained() {
    check(safety);
}

#[test]
fn files_are_small() {
    check(size);
}

#[test]
fn nothing_is_unfinished() {
    check(unfinished);
}

// ── Documents ────────────────────────────────────────────────────────────────────────────────────

#[path = "tidy/documents.rs"]
mod documents;

// ── Each rule can fail ───────────────────────────────────────────────────────────────────────────

/// How often `rule` complains of a file of that path and text.
fn complaints(rule: fn(&Source) -> Vec<String>, path: &str, text: &str) -> usize {
    rule(&Source::new(path, text)).len()
}

#[test]
fn literals_and_comments_are_no_code() {
    for (text, code) in [
        ("a // unsafe\nb", "a          \nb"),
        ("a /* unsafe\n */ b", "a          \n    b"),
        ("f(\"un\\\"safe\") b", "f(          ) b"),
        ("r#\"un\"safe\"# b", "             b"),
        ("br\"x\" b", "b     b"),
        ("'\"' \"x\" 'a", "        'a"),
        ("'\\'' x", "     x"),
        ("'\\u{1b}' x", "         x"),
        ("<'a>(x: &'a str)", "<'a>(x: &'a str)"),
        ("b'\\'', b'x'", "b    , b   "),
    ] {
        assert_eq!(blanked(text), code, "{text}");
    }
    assert_eq!(blanked("'é' \"ß\" x").trim(), "x");
}

#[test]
fn a_missing_header_is_found() {
    assert_eq!(complaints(header, "src/mail/x.rs", "//! Owns x.\n"), 0);
    for text in ["", "use std::fs;\n//! late", "// not doc\n", "/// item doc\n"] {
        assert_eq!(complaints(header, "src/mail/x.rs", text), 1, "{text}");
    }
}

#[test]
fn a_wrong_import_is_found() {
    for (path, text, expected) in [
        ("src/mail/x.rs", "use crate::clock::Tick;", 0),
        ("src/mail/x.rs", "use crate::smtp::server;", 1),
        ("src/limits.rs", "use crate::clock::Tick;", 1),
        ("src/smtp/x.rs", "use crate::{mail::id, limits};", 0),
        ("src/smtp/x.rs", "use crate::{mail::{id, text}, spool::Log, schedule};", 2),
        ("src/spool/mod.rs", "fn f() { crate::smtp::client::f() }", 1),
        ("src/spool/mod.rs", "// crate::smtp::client is another layer", 0),
        ("src/spool/mod.rs", "use super::schedule::Shard;", 1),
        ("src/spool/log.rs", "use super::schedule::Shard;", 0),
        ("src/spool/log.rs", "use super::super::schedule::Shard;", 1),
        ("src/schedule/shard/x.rs", "use super::super::super::{clock, route::Plan};", 1),
        ("src/clock.rs", "use super::mail;", 1),
        ("src/ring/file.rs", "use crate::mail::id::MessageId;", 1),
        ("src/resolve/mod.rs", "use crate::worker::Handle;", 1),
        ("src/control/mod.rs", "use crate::worker::Handle;", 1),
        ("src/control/mod.rs", "use crate::config::Config;", 0),
        ("src/worker/mod.rs", "use crate::{control, ring, spool};", 0),
        ("src/worker/mod.rs", "use crate::cli;", 1),
        ("src/newroom/mod.rs", "", 1),
        ("loadgen/src/sink.rs", "use ringpost::mail::id;", 1),
        ("loadgen/src/sink.rs", "use crate::smtp; ringpost_loadgen::f();", 0),
    ] {
        assert_eq!(complaints(layers, path, text), expected, "{path}: {text}");
    }
}

#[test]
fn impurity_is_found() {
    for (path, text, expected) in [
        ("src/schedule/x.rs", "let now = Instant::now();", 1),
        ("src/schedule/x.rs", "#[cfg(test)]\nmod tests {\n use std::time::Instant; }", 0),
        ("src/schedule/tests.rs", "use std::time::Instant;", 0),
        ("src/smtp/x.rs", "use tokio::net::TcpStream;", 2),
        ("src/worker/x.rs", "use std::time::Instant;", 0),
        ("src/worker/x.rs", "tokio_uring::spawn(f)", 1),
        ("src/ring/x.rs", "tokio_uring::spawn(f); io_uring::opcode::Nop::new()", 0),
        ("loadgen/src/x.rs", "use io_uring::IoUring;", 1),
    ] {
        assert_eq!(complaints(purity, path, text), expected, "{path}: {text}");
    }
}

#[test]
fn stray_unsafe_is_found() {
    for (path, text, expected) in [
        ("src/worker/x.rs", "fn f() { unsafe { g() } }", 1),
        ("loadgen/src/x.rs", "unsafe impl Send for X {}", 1),
        ("src/worker/x.rs", "// unsafe\nlet unsafely = \"unsafe\";", 0),
        ("src/ring/x.rs", "unsafe { g() }", 1),
        ("src/ring/x.rs", "// SAFETY: g has no conditions.\nunsafe { g() }", 0),
        ("src/ring/x.rs", "/// # Safety\n/// Call it once.\nunsafe fn g() {}", 0),
        ("src/ring/x.rs", "// SAFETY: far away.\n\n\n\n\n\n\n\n\n\nunsafe { g() }", 1),
    ] {
        assert_eq!(complaints(safety, path, text), expected, "{path}: {text}");
    }
}

#[test]
fn a_long_file_is_found() {
    assert_eq!(complaints(size, "src/x.rs", &"x\n".repeat(FILE_LINES)), 0);
    assert_eq!(complaints(size, "src/x.rs", &"x\n".repeat(FILE_LINES + 1)), 1);
}

#[test]
fn unfinished_work_is_found() {
    for (text, expected) in [
        (concat!("unimplemented", "!()"), 1),
        (concat!("to", "do!(\"x\")"), 1),
        (concat!("db", "g!(x)"), 1),
        ("#[test]\n#[ignore]\nfn f() {}", 1),
        (concat!("// TO", "DO: finish"), 1),
        (concat!("//! CON", "TRACT: keep"), 1),
        ("\"todo!\" // not dbg! either", 0),
        ("fn todos() {}", 0),
    ] {
        assert_eq!(complaints(unfinished, "src/x.rs", text), expected, "{text}");
    }
}
