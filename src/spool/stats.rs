//! What a log counts.
//!
//! Owns: [`LogStats`]. Promises: every number is defined here; counters only rise while the process
//! lives. Must not: decide anything.

/// Counters and gauges of one log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Segments that hold records, the open one included.
    pub segments: u64,
    /// Segments prepared for writing.
    pub prepared_segments: u64,
    /// Dead segment files waiting to be prepared or deleted.
    pub free_files: u64,
    /// Messages with a recipient that has no durable terminal outcome.
    pub live_messages: u64,
    /// Bytes on disk of those.
    pub live_bytes: u64,
    /// Groups handed out for writing.
    pub groups: u64,
    /// Groups handed out and not answered.
    pub groups_in_flight: u64,
    /// Groups that were not written.
    pub lost_groups: u64,
    /// Frames in groups handed out.
    pub frames: u64,
    /// Bytes handed out for writing, headers and padding included.
    pub bytes_written: u64,
    /// Bytes of commit records and fragments of new messages among them.
    pub mail_bytes: u64,
    /// Bytes of commit records and fragments of copies among them.
    pub copy_bytes: u64,
    /// Messages copied forward.
    pub copies: u64,
    /// Full segments that were given an index.
    pub sealed_segments: u64,
    /// Messages that could not be read back and were given up.
    pub quarantined: u64,
    /// Prepare intents that failed.
    pub failed_prepares: u64,
}

impl LogStats {
    /// Bytes written per byte of mail: 1 is the least possible; 0 before the first mail.
    pub fn write_amplification(&self) -> f64 {
        if self.mail_bytes == 0 { 0.0 } else { self.bytes_written as f64 / self.mail_bytes as f64 }
    }
}
