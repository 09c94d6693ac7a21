//! Destination → plan: which hosts, in which order, on which port (RFC 5321 §5, RFC 7505). Pure.
//!
//! Two questions, one file each: `table` says by which [`Route`] a destination is reached (the
//! operator's `--route` rules, an address literal, or MX); `plan` turns what DNS said into the
//! addresses to try, in order. Between the two the caller asks DNS; neither does.
mod plan;
mod table;

pub use plan::{MxHost, Plan, PlanRules, Target, plan};
pub use table::{Route, RouteError, RouteTable};
