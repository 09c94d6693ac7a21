//! HELP (RFC 5321 §4.1.1.8).
//!
//! Owns: one line for each command. Promises: what it names is there. Must not: depend on the session.

/// The reply to HELP about `topic`, which is empty where none was named.
pub(super) fn text(topic: &[u8]) -> &'static str {
    match topic.to_ascii_uppercase().as_slice() {
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
        _ => "214 2.0.0 EHLO HELO MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT\r\n",
    }
}
