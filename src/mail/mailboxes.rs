//! The addresses in a header field such as To (RFC 5322 §3.4).
//!
//! Owns: taking a list of mailboxes and groups apart. Promises: display names, comments, group names
//! and source routes are left out; what is not closed, or has an address missing, is an error and
//! never half a list. Must not: judge the addresses: what comes out may be none, or a name alone.

/// What is wrong with a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadList {
    #[error("a quote, a comment or an angle bracket is not closed")]
    NotClosed,
    #[error("an angle bracket stands where none may")]
    Bracket,
    #[error("a name has no address")]
    NoAddress,
}

/// One element of the list while it is read.
#[derive(Default)]
struct Element {
    /// What stands outside of brackets and comments, white space left out unless it is quoted.
    text: String,
    /// What stands in angle brackets.
    angle: Option<String>,
}

impl Element {
    /// Adds the address to `out`; nothing where the element is empty.
    fn finish(&mut self, out: &mut Vec<String>) -> Result<(), BadList> {
        let Element { text, angle } = std::mem::take(self);
        let address = match &angle {
            // A source route is not followed by anyone (RFC 5322 §4.4).
            Some(path) if path.starts_with('@') => path.split_once(':').map_or("", |(_, mailbox)| mailbox),
            Some(path) => path,
            None if text.is_empty() => return Ok(()),
            None => &text,
        };
        if address.is_empty() {
            return Err(BadList::NoAddress);
        }
        out.push(address.to_owned());
        Ok(())
    }
}

/// The addresses of `list`, in order, which may be folded over lines.
pub fn addresses(list: &str) -> Result<Vec<String>, BadList> {
    let (mut out, mut element) = (Vec::new(), Element::default());
    let (mut comments, mut is_quoted, mut is_literal, mut in_angle) = (0_usize, false, false, false);
    let mut chars = list.chars();
    while let Some(c) = chars.next() {
        if comments > 0 {
            match c {
                '(' => comments += 1,
                ')' => comments -= 1,
                '\\' => drop(chars.next()),
                _ => {}
            }
            continue;
        }
        let had_angle = element.angle.is_some();
        let kept = match &mut element.angle {
            Some(path) if in_angle => path,
            _ => &mut element.text,
        };
        match c {
            '\r' | '\n' => {}
            _ if is_quoted => {
                kept.push(c);
                match c {
                    '\\' => kept.extend(chars.next()),
                    '"' => is_quoted = false,
                    _ => {}
                }
            }
            '"' => {
                is_quoted = true;
                kept.push(c);
            }
            '(' => comments = 1,
            ' ' | '\t' => {}
            '[' | ']' => {
                is_literal = c == '[';
                kept.push(c);
            }
            '<' if !in_angle && !had_angle => {
                in_angle = true;
                element.angle = Some(String::new());
            }
            '>' if in_angle => in_angle = false,
            '<' | '>' => return Err(BadList::Bracket),
            ',' | ';' if !in_angle => element.finish(&mut out)?,
            // The name of a group ends.
            ':' if !in_angle && !is_literal => element = Element::default(),
            _ => kept.push(c),
        }
    }
    if comments > 0 || is_quoted || in_angle {
        return Err(BadList::NotClosed);
    }
    element.finish(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let table: &[(&str, Result<&[&str], BadList>)] = &[
            ("", Ok(&[])),
            (" \r\n ", Ok(&[])),
            ("a@b.test", Ok(&["a@b.test"])),
            ("a@b.test,c@d.test", Ok(&["a@b.test", "c@d.test"])),
            (", a@b.test,,", Ok(&["a@b.test"])),
            ("A B <a@b.test>,\r\n \"C, D\" <c@d.test>", Ok(&["a@b.test", "c@d.test"])),
            ("=?utf-8?q?=C3=A9?= <a@b.test>", Ok(&["a@b.test"])),
            ("a@b.test (one, \\) of (two) <x@y>), c@d.test", Ok(&["a@b.test", "c@d.test"])),
            ("\"a b\"@c.test", Ok(&["\"a b\"@c.test"])),
            ("\"a\\\"<b\"@c.test, d@e.test", Ok(&["\"a\\\"<b\"@c.test", "d@e.test"])),
            ("<\"a>b\"@c.test>", Ok(&["\"a>b\"@c.test"])),
            ("a . b @ c . test", Ok(&["a.b@c.test"])),
            ("undisclosed-recipients:;", Ok(&[])),
            ("us: a@b.test, B <b@b.test>; , c@d.test", Ok(&["a@b.test", "b@b.test", "c@d.test"])),
            ("<@x.test,@y.test:a@b.test>", Ok(&["a@b.test"])),
            ("a@[IPv6:2001:db8::1], root", Ok(&["a@[IPv6:2001:db8::1]", "root"])),
            ("\u{e9}@b.test", Ok(&["\u{e9}@b.test"])),
            ("\"a@b.test", Err(BadList::NotClosed)),
            ("(a@b.test", Err(BadList::NotClosed)),
            ("A <a@b.test", Err(BadList::NotClosed)),
            ("A <a@b.test> <c@d.test>", Err(BadList::Bracket)),
            ("a@b.test>", Err(BadList::Bracket)),
            ("A <<a@b.test>>", Err(BadList::Bracket)),
            ("A <>", Err(BadList::NoAddress)),
            ("<@x.test>", Err(BadList::NoAddress)),
        ];
        for (list, expected) in table {
            let expected = expected.map(|list| list.iter().map(|a| (*a).to_owned()).collect());
            assert_eq!(addresses(list), expected, "{list:?}");
        }
    }
}
