//! An SMTP reply as a value (RFC 5321 §4.2, RFC 2034, RFC 3463).
//!
//! Owns: [`Reply`], what a peer said or what is said in its name when there was no peer. Promises:
//! its text holds no control character and is bounded by `limits::FOREIGN_TEXT_BYTES`. Must not:
//! parse bytes from the wire (`smtp::reply`).
use std::fmt;

/// An enhanced status code, `class.subject.detail` (RFC 3463 §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnhancedCode {
    pub class: u8,
    pub subject: u16,
    pub detail: u16,
}

/// A whole reply, its lines joined with one space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Three digits, 200–599.
    pub code: u16,
    pub enhanced: Option<EnhancedCode>,
    pub text: Box<str>,
}

impl Reply {
    /// A reply made here for a failure without a peer's words, e.g. `450 4.4.1 connection timed out`.
    /// `text` is cleaned and cut like foreign text.
    pub fn local(code: u16, enhanced: (u8, u16, u16), text: &str) -> Reply {
        let (class, subject, detail) = enhanced;
        Reply {
            code,
            enhanced: Some(EnhancedCode { class, subject, detail }),
            text: super::text::printable(text.as_bytes()).into(),
        }
    }
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.code)
    }
    pub fn is_permanent(&self) -> bool {
        self.code >= 500
    }
    /// The status for a DSN's `Status:` field: the enhanced code when its class fits the reply, else
    /// the class with `.0.0` (RFC 3463 §3.1).
    pub fn status(&self) -> EnhancedCode {
        let class = if self.is_permanent() {
            5
        } else if self.is_success() {
            2
        } else {
            4
        };
        match self.enhanced {
            Some(e) if e.class == class => e,
            _ => EnhancedCode { class, subject: 0, detail: 0 },
        }
    }
}

impl fmt::Display for EnhancedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(e) = self.enhanced {
            write!(f, " {e}")?;
        }
        write!(f, " {}", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_fits_the_reply() {
        let table = [
            (Reply::local(550, (5, 1, 1), "x"), "5.1.1"),
            (Reply::local(450, (5, 1, 1), "x"), "4.0.0"),
            (Reply { enhanced: None, ..Reply::local(550, (0, 0, 0), "x") }, "5.0.0"),
            (Reply::local(250, (2, 1, 5), "x"), "2.1.5"),
        ];
        for (reply, status) in table {
            assert_eq!(reply.status().to_string(), status, "{reply}");
        }
    }

    #[test]
    fn local_text_is_cleaned() {
        assert_eq!(Reply::local(451, (4, 4, 2), "a\r\nb").to_string(), "451 4.4.2 a\\x0d\\x0ab");
    }
}
