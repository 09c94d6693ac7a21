//! Who may log in: the file of users, the SASL mechanisms, and the checking of passwords.
//!
//! Owns: [`Users`], read from `--auth-file`; [`Exchange`], one client's way through a mechanism (RFC 4422);
//! [`Checkers`], the threads that compute password hashes. Promises: passwords and what is derived from
//! them are compared in constant time, wiped when they are dropped and shown nowhere; a name that is not
//! in the file costs what one in it costs, and looks the same to the client. Must not: know SMTP, or be
//! computed on a thread that moves mail.
mod checkers;
mod credential;
mod exchange;
mod plain;
mod prepare;
mod scram;
mod users;

pub use checkers::{Busy, Checkers};
pub use credential::{Credential, Scheme};
pub use exchange::{Attempt, Bindings, Exchange, Next};
pub use users::{Secret, User, Users};

/// SASL mechanisms by their registered names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    ScramSha256Plus,
    ScramSha256,
    Plain,
    Login,
}

impl Mechanism {
    pub const ALL: [Mechanism; 4] =
        [Mechanism::ScramSha256Plus, Mechanism::ScramSha256, Mechanism::Plain, Mechanism::Login];

    /// The name it is offered under.
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::ScramSha256Plus => "SCRAM-SHA-256-PLUS",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::Plain => "PLAIN",
            Mechanism::Login => "LOGIN",
        }
    }

    /// The mechanism of that name.
    pub fn of_name(name: &str) -> Option<Mechanism> {
        Mechanism::ALL.into_iter().find(|m| m.name() == name)
    }
}
