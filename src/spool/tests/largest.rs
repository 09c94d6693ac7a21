//! The largest message that is accepted fits one commit record, and so does its copy.
use super::world::{Memory, config};
use crate::clock::WallTime;
use crate::limits;
use crate::mail::address::Address;
use crate::mail::envelope::{Envelope, Recipient};
use crate::spool::format::FRAGMENT_FIXED_BYTES;
use crate::spool::record::{EnvelopeSource, NewCommit};
use crate::spool::*;

/// An envelope with as many recipients as a session takes of such addresses.
fn envelope(local_part_bytes: usize) -> Envelope {
    let mut envelope = Envelope {
        reverse_path: Address::parse(format!("{}@sender.example", "s".repeat(64)).as_bytes()).ok(),
        ..Envelope::default()
    };
    let mut bytes = 0;
    while bytes < limits::RECIPIENTS_BYTES && envelope.recipients.len() < limits::MAX_RECIPIENTS {
        let nth = envelope.recipients.len();
        let address = format!("{}@d{nth}.example", "r".repeat(local_part_bytes));
        bytes += address.len() + limits::RECIPIENT_OVERHEAD_BYTES;
        envelope.recipients.push(Recipient::new(Address::parse(address.as_bytes()).expect("an address")));
    }
    envelope
}

#[test]
fn what_is_accepted_can_be_copied() {
    let mut log: Log<Memory> = Log::new(
        LogConfig {
            segment_bytes: limits::MIN_SEGMENT_BYTES as u32,
            block_bytes: limits::BLOCK_BYTES as u32,
            ..config()
        },
        RecoveredLog::default(),
    );
    log.lend(Memory(vec![0; limits::COMMIT_BUFFER_BYTES]));
    let in_fragment = limits::FRAGMENT_BYTES - FRAGMENT_FIXED_BYTES;
    let count = limits::MAX_MESSAGE_BYTES.div_ceil(in_fragment as u64) as usize;
    let place = Place { generation: Generation(1), offset: 4096 };
    let fragment = FragmentRef { place, body_bytes: in_fragment as u32, checksum: 7, group: GroupSeq(1) };
    let fragments = vec![fragment; count];
    for local_part_bytes in [1, 20, 64] {
        let envelope = envelope(local_part_bytes);
        let pending = RecipientState::Pending { tries: Tries::new(1, false), next: WallTime(1) };
        let commit = NewCommit {
            recipients: envelope.recipients.len() as u32,
            fragments: &fragments,
            envelope: EnvelopeSource::New(&envelope, None),
            states: &vec![pending; envelope.recipients.len()],
            parts: &[],
        };
        let (bytes, room) = (commit.encoded_bytes() + limits::STANDING_BYTES, log.inline_room());
        // Also with what an envelope says beside its recipients: ENVID, user, stream, the client's name.
        let room = room - 2 * limits::BLOCK_BYTES;
        assert!(bytes <= room, "{} recipients: {bytes} of {room}", envelope.recipients.len());
    }
}
