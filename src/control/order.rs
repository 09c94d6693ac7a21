//! What an operator orders, and how far it has got.
//!
//! Owns: [`Order`], and [`Operations`], the table of orders being carried out. Promises: an order goes on
//! whoever waits for it goes away; what has been done is durable before an order is reported done; the
//! last `limits::OPERATIONS_KEPT` can be asked about. Must not: know how an order is carried out.
use std::collections::VecDeque;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::Timestamp;
use super::selector::Selector;
use crate::clock::WallTime;
use crate::limits;
use crate::mail::address::Domain;

/// What is to be done with messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Act {
    /// Keep from being delivered.
    Hold,
    /// End a hold.
    Release,
    /// Try now.
    Retry,
    /// Return to the sender.
    Fail,
    /// End without delivery and without a bounce.
    Remove,
    /// Deliver as mail for another domain is.
    Move,
}

impl Act {
    pub const ALL: [Act; 6] = [Act::Hold, Act::Release, Act::Retry, Act::Fail, Act::Remove, Act::Move];

    pub fn as_str(self) -> &'static str {
        match self {
            Act::Hold => "hold",
            Act::Release => "release",
            Act::Retry => "retry",
            Act::Fail => "fail",
            Act::Remove => "remove",
            Act::Move => "move",
        }
    }

    /// Whether it concerns mail that is held.
    pub fn takes_held(self) -> bool {
        !matches!(self, Act::Hold | Act::Retry)
    }

    /// Whether it concerns mail that is not held.
    pub fn takes_waiting(self) -> bool {
        self != Act::Release
    }
}

impl FromStr for Act {
    type Err = ();
    fn from_str(text: &str) -> Result<Act, ()> {
        Act::ALL.into_iter().find(|act| act.as_str() == text).ok_or(())
    }
}

/// An operator's order about messages.
#[derive(Clone, Debug)]
pub struct Order {
    pub act: Act,
    pub selector: Selector,
    /// For [`Act::Move`].
    pub to: Option<Domain>,
    /// Safe to show.
    pub reason: Arc<str>,
    /// Only count.
    pub dry_run: bool,
}

/// How far an order has got. Recipients count, not messages.
#[derive(Debug, Default)]
pub struct Progress {
    /// Messages looked at, where each must be.
    pub looked_at: AtomicU64,
    /// Messages there are to look at.
    pub to_look_at: AtomicU64,
    /// Recipients selected.
    pub matched: AtomicU64,
    /// Recipients it was done for, durably.
    pub changed: AtomicU64,
    /// Recipients selected and on their way to their destination just then: nothing was done for them.
    pub in_flight: AtomicU64,
}

impl Progress {
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

/// Where an order stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    Running,
    Done,
    /// Ended early; what was done stays done.
    Failed,
}

/// An order as it is shown. Numbers are of recipients, but `looked_at` and `to_look_at`, which are of
/// messages and 0 where none must be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationView {
    pub operation: u64,
    pub action: Act,
    pub selector: String,
    pub to: Option<String>,
    pub reason: String,
    pub dry_run: bool,
    pub begun: Timestamp,
    pub stage: Stage,
    pub looked_at: u64,
    pub to_look_at: u64,
    pub matched: u64,
    pub changed: u64,
    pub in_flight: u64,
    pub error: Option<String>,
}

struct Operation {
    number: u64,
    order: Order,
    begun: WallTime,
    progress: Arc<Progress>,
    /// None while it runs.
    end: watch::Receiver<Option<Result<(), String>>>,
}

impl Operation {
    fn view(&self) -> OperationView {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let end = self.end.borrow().clone();
        OperationView {
            operation: self.number,
            action: self.order.act,
            selector: self.order.selector.to_string(),
            to: self.order.to.as_ref().map(ToString::to_string),
            reason: self.order.reason.to_string(),
            dry_run: self.order.dry_run,
            begun: Timestamp(self.begun),
            stage: match &end {
                None => Stage::Running,
                Some(Ok(())) => Stage::Done,
                Some(Err(_)) => Stage::Failed,
            },
            looked_at: count(&self.progress.looked_at),
            to_look_at: count(&self.progress.to_look_at),
            matched: count(&self.progress.matched),
            changed: count(&self.progress.changed),
            in_flight: count(&self.progress.in_flight),
            error: end.and_then(Result::err),
        }
    }
}

/// The orders being carried out, and the last ones that were.
#[derive(Default)]
pub struct Operations {
    table: Mutex<(u64, VecDeque<Operation>)>,
}

impl Operations {
    /// Begins an order: `run` is spawned on the present tokio runtime. Refused while too many run.
    pub fn begin(
        &self,
        order: Order,
        run: impl FnOnce(Order, Arc<Progress>) -> super::BoxFuture<Result<(), String>>,
    ) -> Result<u64, String> {
        let mut table = self.table.lock().expect("no holder panics");
        let running = table.1.iter().filter(|op| op.end.borrow().is_none()).count();
        if running >= limits::OPERATIONS_RUNNING {
            return Err(format!("{running} operations are under way already: wait for one to end"));
        }
        table.0 += 1;
        let number = table.0;
        let progress = Arc::new(Progress::default());
        let (tell, end) = watch::channel(None);
        let work = run(order.clone(), progress.clone());
        tokio::spawn(async move {
            let done = work.await;
            tell.send_replace(Some(done));
        });
        table.1.push_back(Operation { number, order, begun: WallTime::now(), progress, end });
        while table.1.len() > limits::OPERATIONS_KEPT
            && let Some(at) = table.1.iter().position(|op| op.end.borrow().is_some())
        {
            table.1.remove(at);
        }
        Ok(number)
    }

    /// The operation, after waiting for its end for a while.
    pub async fn view(&self, number: u64, wait: Duration) -> Option<OperationView> {
        let find = |table: &VecDeque<Operation>| table.iter().position(|op| op.number == number);
        let mut end = {
            let table = self.table.lock().expect("no holder panics");
            table.1[find(&table.1)?].end.clone()
        };
        let _ = tokio::time::timeout(wait, end.wait_for(Option::is_some)).await;
        let table = self.table.lock().expect("no holder panics");
        find(&table.1).map(|at| table.1[at].view())
    }

    /// All that are known, the oldest first.
    pub fn list(&self) -> Vec<OperationView> {
        self.table.lock().expect("no holder panics").1.iter().map(Operation::view).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Order {
        Order {
            act: Act::Hold,
            selector: Selector::default(),
            to: None,
            reason: "a test".into(),
            dry_run: false,
        }
    }

    #[test]
    fn acts_have_one_text() {
        for act in Act::ALL {
            assert_eq!(act.as_str().parse(), Ok(act));
            assert_eq!(serde_json::json!(act), act.as_str());
        }
        assert!("drop".parse::<Act>().is_err());
    }

    #[tokio::test]
    async fn orders_run_to_their_end_and_are_remembered() {
        let operations = Operations::default();
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let first = operations.begin(order(), |_, progress| {
            Box::pin(async move {
                Progress::add(&progress.changed, 3);
                let _ = gone.await;
                Err("the disk is full".to_owned())
            })
        });
        let first = first.expect("begun");
        let view = operations.view(first, Duration::ZERO).await.expect("known");
        assert_eq!((view.stage, view.error), (Stage::Running, None));
        go.send(()).expect("it waits");
        let view = operations.view(first, Duration::from_secs(60)).await.expect("known");
        assert_eq!(
            (view.stage, view.changed, view.error.as_deref()),
            (Stage::Failed, 3, Some("the disk is full"))
        );
        assert_eq!(operations.view(first + 1, Duration::ZERO).await, None);
    }

    #[tokio::test]
    async fn only_so_many_run_and_are_kept() {
        let operations = Operations::default();
        let forever =
            |_, _| -> super::super::BoxFuture<Result<(), String>> { Box::pin(std::future::pending()) };
        for _ in 0..limits::OPERATIONS_RUNNING {
            operations.begin(order(), forever).expect("begun");
        }
        assert!(operations.begin(order(), forever).is_err_and(|e| e.contains("wait for one to end")));
        let operations = Operations::default();
        for n in 1..=limits::OPERATIONS_KEPT as u64 + 5 {
            let number =
                operations.begin(order(), |_, _| Box::pin(std::future::ready(Ok(())))).expect("begun");
            assert_eq!(number, n);
            operations.view(number, Duration::from_secs(5)).await.expect("known");
        }
        assert_eq!(operations.list().len(), limits::OPERATIONS_KEPT);
    }
}
