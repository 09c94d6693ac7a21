//! The fuzz targets on stable Rust: seeds, and random mutations of them.
#[path = "conformance/dialogue.rs"]
#[allow(dead_code, reason = "the conformance test uses the rest")]
mod dialogue;
#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use ringpost::clock::{self, Rng};

/// Mutated inputs for each target; `FUZZ_ROUNDS` makes them more.
const ROUNDS: u64 = 3_000;
/// Mutated inputs have at most about this many bytes: the seeds that test limits are larger, and slow.
const MUTANT_BYTES: usize = 3_000;

/// Words that a mutation may put anywhere.
const WORDS: [&[u8]; 50] = [
    b"\r\n",
    b"\r\n.\r\n",
    b".\r\n",
    b"\n",
    b"\r",
    b".",
    b"\0",
    b" ",
    b"<",
    b">",
    b"@",
    b"\"",
    b"\\",
    b":",
    b"EHLO c\r\n",
    b"MAIL FROM:<a@b>\r\n",
    b"RCPT TO:<c@d>\r\n",
    b"DATA\r\n",
    b"RSET\r\n",
    b"QUIT\r\n",
    b"AUTH PLAIN AHVzZXIAc2VjcmV0\r\n",
    b"XCLIENT ADDR=192.0.2.1\r\n",
    b",r=",
    b"p=tls-exporter,,",
    b" SIZE=",
    b" BODY=8BITMIME",
    b" BODY=BINARYMIME",
    b" SMTPUTF8",
    b" RET=FULL",
    b" ENVID=x+2B",
    b" NOTIFY=NEVER",
    b" NOTIFY=SUCCESS,DELAY",
    b" ORCPT=rfc822;a@b",
    b" ORCPT=utf-8;\xc3\xbc@b",
    b"BDAT 3\r\n",
    b"BDAT 0 LAST\r\n",
    b"BDAT 7 LAST\r\n",
    b"\xc3\xbc",
    b"\xe2\x80\xae",
    b"250-CHUNKING\r\n250-SMTPUTF8\r\n250 DSN\r\n",
    b"[IPv6:::1]",
    b"[192.0.2.1]",
    b"18446744073709551616",
    b"Received: x\r\n",
    b"250 ok\r\n",
    b"250-PIPELINING\r\n",
    b"354 go\r\n",
    b"421 4.3.2 bye\r\n",
    b"550 5.1.1 no\r\n",
    b"\xff\xfe",
];

fn fuzz_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The seeds of a target with their names: what the dialogues say, and the files of `fuzz/seeds/`.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    let mut known = BTreeSet::new();
    let mut add = |name: String, bytes: Vec<u8>| {
        if known.insert(bytes.clone()) {
            all.push((name, bytes));
        }
    };
    for dialogue in dialogue::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance")) {
        let client: Vec<u8> = dialogue.turns.iter().flat_map(|turn| turn.client.clone()).collect();
        match target {
            "session" => {
                let settings = &dialogue.settings;
                let flags = u8::from(!settings.may_relay)
                    | u8::from(settings.users) << 4
                    | u8::from(settings.local_domain.is_some()) << 7;
                add(dialogue.name.clone(), [&[flags], &client[..]].concat());
            }
            "chunk" => {
                if let Some(data) = memchr::memmem::find(&client, b"DATA\r\n") {
                    add(dialogue.name.clone(), client[data + 6..].to_vec());
                }
            }
            "body" => {
                if let Some(data) = memchr::memmem::find(&client, b"DATA\r\n") {
                    add(dialogue.name.clone(), client[data + 6..].to_vec());
                }
            }
            "command" | "address" => {
                for (number, line) in client.split(|b| *b == b'\n').take(30).enumerate() {
                    let line = line.strip_suffix(b"\r").unwrap_or(line);
                    let path =
                        line.split(|b| *b == b'<').nth(1).and_then(|rest| rest.split(|b| *b == b'>').next());
                    let bytes = if target == "command" { Some(line) } else { path };
                    if let Some(bytes) = bytes.filter(|bytes| bytes.len() < 5000) {
                        add(format!("{}-{number}", dialogue.name), bytes.to_vec());
                    }
                }
            }
            _ => {}
        }
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(fuzz_dir().join("seeds").join(target))
        .map(|entries| entries.map(|entry| entry.expect("readable").path()).collect())
        .unwrap_or_default();
    files.sort();
    for file in files {
        let name = file.file_name().expect("a file").to_string_lossy().into_owned();
        add(name, std::fs::read(&file).expect("readable"));
    }
    all
}

/// Says what was being run if it panics.
struct Running<'a>(&'a str, &'a [u8]);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: {}", self.0, self.1.escape_ascii());
        }
    }
}

fn run((name, target): targets::Target, input: &[u8]) {
    let _running = Running(name, input);
    target(input);
}

#[test]
fn seeds_hold() {
    for target in targets::TARGETS {
        let seeds = seeds(target.0);
        println!("{}: {} seeds", target.0, seeds.len());
        assert!(seeds.len() >= 5, "{} has few seeds", target.0);
        seeds.iter().for_each(|(_, bytes)| run(target, bytes));
        run(target, b"");
    }
}

#[test]
fn mutations_of_seeds_hold() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().expect("a number"));
    let seed = number("FUZZ_SEED").unwrap_or_else(clock::secret_u64);
    let rounds = number("FUZZ_ROUNDS").unwrap_or(ROUNDS);
    println!("FUZZ_SEED={seed}");
    for target in targets::TARGETS {
        let mut rng = Rng::new(seed);
        let seeds: Vec<Vec<u8>> = seeds(target.0)
            .into_iter()
            .map(|(_, bytes)| bytes)
            .filter(|bytes| bytes.len() <= MUTANT_BYTES)
            .collect();
        for _ in 0..rounds {
            let mutant = mutate(&seeds, &mut rng);
            run(target, &mutant);
        }
    }
}

/// A seed with a few random changes.
fn mutate(seeds: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let below = |rng: &mut Rng, bound: usize| rng.below(bound as u64) as usize;
    let mut bytes = seeds[below(rng, seeds.len())].clone();
    for _ in 0..1 + below(rng, 6) {
        let at = below(rng, bytes.len() + 1);
        let end = (at + 1 + below(rng, 20)).min(bytes.len());
        match below(rng, 8) {
            0 if at < bytes.len() => bytes[at] = rng.next_u64() as u8,
            1 if at < bytes.len() => bytes[at] ^= 1 << below(rng, 8),
            2 => drop(bytes.drain(at..end)),
            3 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
            4 => bytes.truncate(at),
            5 => {
                let other = &seeds[below(rng, seeds.len())];
                let from = below(rng, other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            6 if below(rng, 20) == 0 => {
                drop(bytes.splice(at..at, std::iter::repeat_n(b'x', below(rng, 5000))))
            }
            _ => drop(bytes.splice(at..at, WORDS[below(rng, WORDS.len())].iter().copied())),
        }
    }
    bytes.truncate(2 * MUTANT_BYTES);
    bytes
}

/// Writes the seeds for cargo-fuzz, see `fuzz/README.md`: into `$RINGPOST_CORPUS`, or where tests write.
#[test]
fn every_target_has_seeds_that_can_be_written() {
    let wanted = std::env::var_os("RINGPOST_CORPUS").map(PathBuf::from);
    let corpus = wanted.unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("corpus"));
    for (target, _) in targets::TARGETS {
        let (dir, seeds) = (corpus.join(target), seeds(target));
        assert!(!seeds.is_empty(), "{target}");
        std::fs::create_dir_all(&dir).expect("made");
        for (name, bytes) in &seeds {
            std::fs::write(dir.join(name), bytes).expect("written");
        }
        let written = std::fs::read_dir(&dir).expect("a directory").count();
        assert!(written >= seeds.len(), "{target}: two seeds have one name");
    }
}
