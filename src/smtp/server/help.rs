//! HELP (RFC 5321 §4.1.1.8).
//!
//! Owns: one line for each command. Promises: what it names is there, in this state of this session. Must
//! not: change the session.
use super::ServerSession;
use crate::smtp::xclient;

impl ServerSession {
    /// The reply to HELP about `topic`, which is empty where none was named.
    pub(super) fn help(&self, topic: &[u8]) -> String {
        let topic = topic.to_ascii_uppercase();
        match topic.as_slice() {
            b"STARTTLS" if self.offers_starttls() => {
                "214 2.0.0 STARTTLS: a TLS handshake follows; the session begins anew behind it\r\n".into()
            }
            b"AUTH" if self.offers_auth() => {
                let mechanisms: Vec<&str> = self.mechanisms().collect();
                let mechanisms = mechanisms.join("|");
                format!("214 2.0.0 AUTH {mechanisms} [initial response in base64]: a login\r\n")
            }
            b"XCLIENT" if self.peer.xclient => {
                format!(
                    "214 2.0.0 XCLIENT attribute=value: speaks for another client ({})\r\n",
                    xclient::ATTRIBUTES
                )
            }
            known => always_there(known).map_or_else(|| self.help_in_general(), str::to_owned),
        }
    }

    /// All the commands.
    fn help_in_general(&self) -> String {
        let mut text = "214 2.0.0 EHLO HELO MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT".to_owned();
        let others = [
            ("STARTTLS", self.offers_starttls()),
            ("AUTH", self.offers_auth()),
            ("XCLIENT", self.peer.xclient),
        ];
        for (command, _) in others.into_iter().filter(|(_, offered)| *offered) {
            text.push(' ');
            text.push_str(command);
        }
        text + "\r\n"
    }
}

/// The line of a command that depends on nothing.
fn always_there(topic: &[u8]) -> Option<&'static str> {
    Some(match topic {
        b"EHLO" => "214 2.0.0 EHLO hostname: begins a session and lists the extensions\r\n",
        b"HELO" => "214 2.0.0 HELO hostname: begins a session without extensions\r\n",
        b"MAIL" => {
            "214 2.0.0 MAIL FROM:<address> [SIZE=bytes] [BODY=7BIT|8BITMIME|BINARYMIME] [SMTPUTF8] \
             [RET=FULL|HDRS] [ENVID=xtext]: begins a message\r\n"
        }
        b"RCPT" => {
            "214 2.0.0 RCPT TO:<address> [NOTIFY=NEVER|SUCCESS,FAILURE,DELAY] [ORCPT=type;xtext]: adds a \
             recipient\r\n"
        }
        b"DATA" => "214 2.0.0 DATA: the message follows, up to a line with a single dot\r\n",
        b"BDAT" => "214 2.0.0 BDAT bytes [LAST]: so many bytes of the message follow\r\n",
        b"RSET" => "214 2.0.0 RSET: forgets the message\r\n",
        b"NOOP" => "214 2.0.0 NOOP: does nothing\r\n",
        b"VRFY" => "214 2.0.0 VRFY address: cannot tell, see 252\r\n",
        b"HELP" => "214 2.0.0 HELP [command]: this\r\n",
        b"QUIT" => "214 2.0.0 QUIT: ends the session\r\n",
        _ => return None,
    })
}
