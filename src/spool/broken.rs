//! Rules of the writer that a test can have it break.
//!
//! Owns: [`Broken`], one name per rule, and the question whether it is broken. Promises: outside of tests no
//! rule is ever broken, and the question costs nothing. The simulation shows with each that its checkers see
//! what the rule prevents. Must not: be more than a condition beside the rule.
use super::log::Log;

/// What is done instead of what the rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// A group is reported durable when it is handed out.
    AnswersEarly,
    /// The oldest segment is recycled although live messages lie in it.
    RecyclesLive,
    /// A message holds nothing back once its end was appended, durable or not.
    ForgetsEarly,
    /// A file is deleted although no durable group states that it is dead.
    DeletesEarly,
    /// Refused messages get no abort record, and the segment that failed is not closed.
    LeavesRefused,
    /// Outcomes in a group that was lost are not written again.
    DropsOutcomes,
    /// A group states that all before it are durable, whatever is in flight.
    ClaimsDurable,
    /// A segment is sealed while its groups are in flight.
    SealsEarly,
    /// A copy begins with another byte than its message.
    CopiesOtherBody,
    /// A copy is of a message that nobody was sent yet.
    CopiesNoStates,
    /// A copy has no record of what was tried.
    CopiesNoTries,
    /// A copy leaves out what operators decided.
    CopiesNoStandings,
    /// A message is copied while the report on one of its recipients is in flight.
    CopiesReported,
    /// A report does not name whose end it is.
    ReportsNobody,
}

impl<B> Log<B> {
    #[cfg(test)]
    pub(super) fn breaks(&self, rule: Broken) -> bool {
        self.broken == Some(rule)
    }
    #[cfg(not(test))]
    pub(super) fn breaks(&self, _rule: Broken) -> bool {
        false
    }
}
