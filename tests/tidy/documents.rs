//! What the documents say against what the code does.
//!
//! Owns: the rules for `docs/LIMITS.md` and `README.md`. Promises: a bound cannot be added, dropped or
//! changed without its row; the README's test command is the one that is run. Must not: judge prose.
use std::collections::BTreeMap;

use super::read;

/// Constants of `limits.rs` with their values: counts and bytes as they are, durations in
/// milliseconds.
fn constants(text: &str) -> BTreeMap<String, u128> {
    let code = super::blanked(text);
    let written: BTreeMap<&str, &str> = code.split("pub const ").skip(1).map(name_and_expression).collect();
    written.keys().map(|name| ((*name).to_owned(), evaluate(name, &written))).collect()
}

fn name_and_expression(item: &str) -> (&str, &str) {
    let (name, rest) = item.split_once(':').expect("a constant has a type");
    let (_, value) = rest.split_once('=').expect("a constant has a value");
    (name, value.split_once(';').expect("a constant ends").0)
}

fn evaluate(name: &str, written: &BTreeMap<&str, &str>) -> u128 {
    let expression = written.get(name).unwrap_or_else(|| panic!("{name} is not a constant of this file"));
    let mut words = Words(tokens(expression), written);
    let value = words.sum();
    assert!(words.0.is_empty(), "{name} is written in a way that this test cannot read");
    value
}

/// Numbers, names and signs, last first.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut joined = false;
    for c in text.replace("::", ".").chars() {
        let is_word = c.is_alphanumeric() || c == '_' || c == '.';
        match tokens.last_mut().filter(|_| is_word && joined) {
            Some(last) => last.push(c),
            None if c.is_whitespace() => {}
            None => tokens.push(c.to_string()),
        }
        joined = is_word;
    }
    tokens.reverse();
    tokens
}

/// A small reader of constant expressions: sums of products of numbers, other constants, casts,
/// `uN::MAX` and `Duration::from_…`.
struct Words<'a>(Vec<String>, &'a BTreeMap<&'a str, &'a str>);

impl Words<'_> {
    fn next_if(&mut self, wanted: &str) -> bool {
        let is = self.0.last().is_some_and(|word| word == wanted);
        if is {
            self.0.pop();
        }
        is
    }

    fn sum(&mut self) -> u128 {
        let mut value = self.product();
        loop {
            if self.next_if("+") {
                value += self.product();
            } else if self.next_if("-") {
                value -= self.product();
            } else {
                return value;
            }
        }
    }

    fn product(&mut self) -> u128 {
        let mut value = self.term();
        loop {
            if self.next_if("as") {
                self.0.pop();
            } else if self.next_if("*") {
                value *= self.term();
            } else if self.next_if("<") {
                assert!(self.next_if("<"), "a comparison is no value");
                value <<= self.term();
            } else {
                return value;
            }
        }
    }

    fn term(&mut self) -> u128 {
        let word = self.0.pop().expect("an expression goes on");
        match word.as_str() {
            "(" => {
                let value = self.sum();
                assert!(self.next_if(")"), "a bracket is closed");
                value
            }
            "u16.MAX" => u16::MAX.into(),
            "u32.MAX" => u32::MAX.into(),
            "Duration.from_secs" => 1000 * self.term(),
            "Duration.from_millis" => self.term(),
            number if number.starts_with(|c: char| c.is_ascii_digit()) => {
                number.replace('_', "").parse().expect("a whole number")
            }
            name => evaluate(name, self.1),
        }
    }
}

/// Rows of the tables: name, value, flag.
fn rows(document: &str) -> Vec<(String, String, String)> {
    let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let name = |cell: &str| cell.strip_prefix('`')?.strip_suffix('`').map(str::to_owned);
    let row = |line: &str| match cells(line).as_slice() {
        [_, first, value, flag, at_limit, _] if !at_limit.is_empty() => {
            Some((name(first)?, value.clone(), flag.trim_matches('`').to_owned()))
        }
        _ => None,
    };
    document.lines().filter_map(row).collect()
}

/// A value as the document writes it, in the units of [`constants`].
fn value(text: &str) -> Option<u128> {
    let (number, unit) = text.split_once(' ').unwrap_or((text, ""));
    let factor = match unit {
        "" | "ms" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    Some(number.replace(',', "").parse::<u128>().ok()? * factor)
}

fn limits_agree(code: &str, document: &str) -> Vec<String> {
    let constants = constants(code);
    let rows = rows(document);
    let mut complaints = Vec::new();
    for (name, actual) in &constants {
        match rows.iter().filter(|row| row.0 == *name).collect::<Vec<_>>()[..] {
            [] => complaints
                .push(format!("docs/LIMITS.md: no row for {name} (with value and what happens at it)")),
            [row] if value(&row.1) != Some(*actual) => {
                complaints.push(format!("docs/LIMITS.md: {name} is {}, the code says {actual}", row.1));
            }
            [_] => {}
            _ => complaints.push(format!("docs/LIMITS.md: {name} has more than one row")),
        }
    }
    for (name, _, flag) in &rows {
        if !constants.contains_key(name) {
            complaints.push(format!("docs/LIMITS.md: {name} is not a constant of limits.rs any more"));
        }
        let is_flag =
            flag.strip_prefix("--").is_some_and(|flag| ringpost::config::Setting::find(flag).is_some());
        if !flag.is_empty() && !is_flag {
            complaints.push(format!("docs/LIMITS.md: {name}: {flag} is not a flag"));
        }
    }
    complaints
}

/// The commands in the README's code blocks that begin with cargo.
fn cargo_commands(readme: &str) -> Vec<&str> {
    readme
        .split("```")
        .skip(1)
        .step_by(2)
        .flat_map(str::lines)
        .filter(|line| line.starts_with("cargo "))
        .collect()
}

/// The README's test command, and that the CI script runs it.
fn commands_agree(readme: &str, script: &str) -> Vec<String> {
    let commands = cargo_commands(readme);
    let [_demo @ "cargo run --release -- demo", test] = commands[..] else {
        return vec![format!(
            "README.md: the two commands of a newcomer are the demo and the test, not {commands:?}"
        )];
    };
    let assigned = script.lines().any(|line| line == format!("test_command='{test}'"));
    let runs = script.lines().any(|line| line == "$test_command");
    if assigned && runs {
        vec![]
    } else {
        vec![format!(".ci/run does not run the README's test command: {test}")]
    }
}

#[test]
fn every_bound_is_documented() {
    let complaints = limits_agree(&read("src/limits.rs"), &read("docs/LIMITS.md"));
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn the_readme_names_what_is_run() {
    let complaints = commands_agree(&read("README.md"), &read(".ci/run"));
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn constants_are_read() {
    let code = "/// pub const IN_A_COMMENT: u8 = 1;\n\
        pub const A: usize = 64 * 1024;\npub const B: u64 = 2 * Z as u64 + 1;\n\
        pub const C: Duration = Duration::from_secs(5 * 24 * 3600);\npub const D: Duration = Duration::from_millis(7);\n\
        pub const E: usize = u32::MAX as usize - 1;\npub const F: u64 = (3 + 1) as u64 * 2;\npub const G: u64 = 1 << 20;\n\
        const PRIVATE: usize = 3;\npub const Z: usize = A;\n";
    let read: Vec<(String, u128)> = constants(code).into_iter().collect();
    let expected = [
        ("A", 65_536),
        ("B", 131_073),
        ("C", 432_000_000),
        ("D", 7),
        ("E", 4_294_967_294),
        ("F", 8),
        ("G", 1 << 20),
        ("Z", 65_536),
    ];
    assert_eq!(read, expected.map(|(name, value)| (name.to_owned(), value)));
}

#[test]
fn a_wrong_row_is_found() {
    let code = "pub const A: usize = 1024;\npub const W: Duration = Duration::from_secs(90);";
    let good = "| `A` | 1 KiB | `--workers` | slow |\n| `W` | 90 s | | closed |\n";
    assert_eq!(limits_agree(code, good), Vec::<String>::new());
    for (document, part) in [
        ("| `A` | 1 KiB | | slow |", "no row for W"),
        ("| `A` | 1 KiB | | slow |\n| `W` | 90 s | | |", "no row for W"),
        ("| `A` | 2 KiB | | slow |\n| `W` | 90 s | | closed |", "A is 2 KiB, the code says 1024"),
        ("| `A` | 1 KiB | | slow |\n| `W` | 90 min | | closed |", "W is 90 min"),
        ("| `A` | 1 KiB | | slow |\n| `A` | 1 KiB | | slow |\n| `W` | 90 s | | closed |", "more than one"),
        (
            "| `A` | 1 KiB | | slow |\n| `W` | 90 s | | closed |\n| `B` | 1 | | closed |",
            "B is not a constant",
        ),
        ("| `A` | 1 KiB | `--nothing` | slow |\n| `W` | 90 s | | closed |", "--nothing is not a flag"),
    ] {
        let complaints = limits_agree(code, document);
        assert!(complaints.len() == 1 && complaints[0].contains(part), "{document}: {complaints:?}");
    }
}

#[test]
fn commands_that_differ_are_found() {
    let readme = "```sh\ncargo run --release -- demo\n```\n```sh\ncargo test --workspace\n```\n";
    let script = "test_command='cargo test --workspace'\n$test_command\n";
    assert_eq!(commands_agree(readme, script), Vec::<String>::new());
    for (readme, script) in [
        (readme, "test_command='cargo test'\n$test_command\n"),
        (readme, "test_command='cargo test --workspace'\n"),
        ("```sh\ncargo run --release -- demo\n```\n", script),
        (&format!("{readme}```\ncargo bench\n```\n"), script),
        ("cargo run --release -- demo\ncargo test --workspace\n", script),
    ] {
        assert_eq!(commands_agree(readme, script).len(), 1, "{readme}{script}");
    }
}
