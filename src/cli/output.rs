//! Results on standard output: text, JSON, tables.
//!
//! Owns: how results are written. Promises: a reader that has seen enough (`| head`) is no error, and
//! no control character of foreign text reaches a terminal. Must not: decide what is printed.
use std::io::{ErrorKind, Write};

use anyhow::Context;
use serde::Serialize;

use crate::mail::text::printable;

/// Writes text as it is.
pub fn text(text: &str) -> anyhow::Result<()> {
    bytes(text.as_bytes())
}

/// Writes bytes as they are.
pub fn bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot print the result"),
        _ => Ok(()),
    }
}

/// Writes one JSON value and a line end.
pub fn json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    text(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Writes one JSON value on a line of its own, for lists too long to hold.
pub fn json_line<T: Serialize>(value: &T) -> anyhow::Result<()> {
    text(&(serde_json::to_string(value)? + "\n"))
}

/// Rows in columns as wide as their widest cell.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(head: &[&str]) -> Table {
        Table { rows: vec![head.iter().map(|&cell| cell.to_owned()).collect()] }
    }

    /// A row; its cells are made safe to show.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.iter().map(|cell| printable(cell.as_bytes())).collect());
    }

    /// The lines. Numbers stand to the right of their column, the rest to the left.
    pub fn render(&self) -> String {
        let columns = self.rows[0].len();
        let widths: Vec<usize> =
            (0..columns).map(|i| self.rows.iter().map(|row| row[i].len()).max().unwrap_or(0)).collect();
        let is_number = |i: usize| {
            self.rows.len() > 1 && self.rows[1..].iter().all(|row| row[i].bytes().all(|b| b.is_ascii_digit()))
        };
        let right: Vec<bool> = (0..columns).map(is_number).collect();
        let mut out = String::new();
        for row in &self.rows {
            let cells = row.iter().enumerate().map(|(i, cell)| {
                let width = widths[i];
                if right[i] { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            });
            out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_foreign_text_is_tame() {
        let mut table = Table::new(&["name", "count", "state"]);
        table.row(["a.example".into(), "7".into(), "ready".into()]);
        table.row(["b\x1b[31m".into(), "1200".into(), String::new()]);
        assert_eq!(
            table.render(),
            "name       count  state\n\
             a.example      7  ready\n\
             b\\x1b[31m   1200\n"
        );
    }
}
