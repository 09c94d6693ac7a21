//! The routes: health, metrics, counters, queue, retry, remove.
//!
//! Owns: paths, query parameters and answers. Promises: every answer but `/metrics` and the probes is
//! JSON, an error `{"error": "…"}` with what to do; a query that is not understood is refused, never
//! guessed at. Must not: wait for a worker longer than `limits::CONTROL_REPLY_WAIT`.
use std::sync::Arc;
use std::time::Instant;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State as Shared};
use axum::http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::counters::{ProcessView, Report};
use super::view::{Removed, Retried, Selector, State};
use super::{BoxFuture, ControlConfig, Server, guard, metrics};
use crate::clock::WallTime;
use crate::config::grammar;
use crate::limits;
use crate::mail::address::Domain;
use crate::mail::id::MessageId;

/// What every route may use.
pub struct Context {
    pub config: ControlConfig,
    pub server: Arc<dyn Server>,
    pub started: Instant,
}

/// A request that is not answered with what it asked for.
struct Failure(StatusCode, String);

type Answer<T> = Result<Json<T>, Failure>;

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = (self.0, Json(serde_json::json!({ "error": self.1 }))).into_response();
        if self.0 == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

fn bad(why: impl Into<String>) -> Failure {
    Failure(StatusCode::BAD_REQUEST, why.into())
}

impl From<QueryRejection> for Failure {
    fn from(rejection: QueryRejection) -> Failure {
        bad(rejection.body_text())
    }
}

/// What the local socket serves.
pub fn local_routes(context: Arc<Context>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/api/v1/counters", get(counters))
        .route("/api/v1/destinations", get(destinations))
        .route("/api/v1/queue", get(queue))
        .route("/api/v1/messages/{id}", get(show).delete(remove))
        .route("/api/v1/retry", post(retry))
        .fallback(async || Failure(StatusCode::NOT_FOUND, "no such path".into()))
        .method_not_allowed_fallback(async || Failure(StatusCode::METHOD_NOT_ALLOWED, "wrong method".into()))
        .with_state(context)
}

/// What `--control` serves: the same, behind the guard.
pub fn remote_routes(context: Arc<Context>) -> Router {
    local_routes(context.clone()).layer(from_fn_with_state(context, guarded))
}

async fn guarded(Shared(context): Shared<Arc<Context>>, request: Request, next: Next) -> Response {
    match guard::check(&request, context.config.token.as_deref()) {
        Ok(()) => next.run(request).await,
        Err((status, why)) => Failure(status, why.into()).into_response(),
    }
}

/// The workers' answer, if it comes in time.
async fn within<T>(answer: BoxFuture<T>) -> Result<T, Failure> {
    tokio::time::timeout(limits::CONTROL_REPLY_WAIT, answer).await.map_err(|_| {
        Failure(StatusCode::GATEWAY_TIMEOUT, "the workers have not answered in time: try again".into())
    })
}

async fn ready(Shared(context): Shared<Arc<Context>>) -> (StatusCode, &'static str) {
    if context.server.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

async fn report(context: &Context) -> Result<Report, Failure> {
    let counters = within(context.server.counters()).await?;
    let process = ProcessView::ask(&context.config, context.started.elapsed());
    Ok(Report { process, write_amplification: counters.write_amplification(), counters })
}

async fn metrics(Shared(context): Shared<Arc<Context>>) -> Result<Response, Failure> {
    let text = metrics::render(&report(&context).await?);
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

async fn counters(Shared(context): Shared<Arc<Context>>) -> Answer<Report> {
    report(&context).await.map(Json)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DestinationsQuery {
    domain: Option<String>,
    limit: Option<usize>,
}

async fn destinations(
    Shared(context): Shared<Arc<Context>>,
    query: Result<Query<DestinationsQuery>, QueryRejection>,
) -> Answer<impl Serialize> {
    let Query(query) = query?;
    let domain = query.domain.as_deref().map(parse_domain).transpose()?;
    // One destination is looked for among as many as an answer may hold.
    let limit = if domain.is_some() { limits::CONTROL_LIST } else { parse_limit(query.limit)? };
    let mut found = within(context.server.destinations(limit)).await?;
    if let Some(domain) = domain {
        found.retain(|view| view.destination == domain.as_str());
    }
    Ok(Json(found))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QueueQuery {
    domain: Option<String>,
    sender: Option<String>,
    recipient: Option<String>,
    state: Option<String>,
    older_than: Option<String>,
    limit: Option<usize>,
}

async fn queue(
    Shared(context): Shared<Arc<Context>>,
    query: Result<Query<QueueQuery>, QueryRejection>,
) -> Answer<impl Serialize> {
    let Query(query) = query?;
    let limit = parse_limit(query.limit)?;
    let selector = selector(query, WallTime::now())?;
    within(context.server.list(selector, limit)).await.map(Json)
}

fn selector(query: QueueQuery, now: WallTime) -> Result<Selector, Failure> {
    let before = |age: &str| -> Result<WallTime, Failure> {
        let age = grammar::duration(age).map_err(|why| bad(format!("older_than: {why}")))?;
        Ok(WallTime(now.0.saturating_sub(age.as_micros() as u64)))
    };
    Ok(Selector {
        domain: query.domain.as_deref().map(parse_domain).transpose()?,
        sender: query.sender,
        recipient: query.recipient,
        state: query
            .state
            .map(|text| text.parse::<State>().map_err(|why| bad(format!("state: {why}"))))
            .transpose()?,
        received_before: query.older_than.as_deref().map(before).transpose()?,
    })
}

fn parse_domain(text: &str) -> Result<Domain, Failure> {
    Domain::parse_utf8(text.as_bytes()).map_err(|why| bad(format!("domain: {why}")))
}

fn parse_limit(limit: Option<usize>) -> Result<usize, Failure> {
    match limit {
        None => Ok(100),
        Some(limit) if (1..=limits::CONTROL_LIST).contains(&limit) => Ok(limit),
        Some(_) => Err(bad(format!("limit: write a number from 1 to {}", limits::CONTROL_LIST))),
    }
}

fn parse_id(text: &str) -> Result<MessageId, Failure> {
    text.parse().map_err(|why| bad(format!("{why}")))
}

fn unknown(id: MessageId) -> Failure {
    Failure(StatusCode::NOT_FOUND, format!("no message {id} in the queue: it is finished, or never was"))
}

async fn show(Shared(context): Shared<Arc<Context>>, Path(id): Path<String>) -> Answer<impl Serialize> {
    let id = parse_id(&id)?;
    within(context.server.show(id)).await?.map(Json).ok_or_else(|| unknown(id))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveQuery {
    reason: Option<String>,
}

async fn remove(
    Shared(context): Shared<Arc<Context>>,
    Path(id): Path<String>,
    query: Result<Query<RemoveQuery>, QueryRejection>,
) -> Answer<Removed> {
    let id = parse_id(&id)?;
    let reason = query?.0.reason.unwrap_or_else(|| "removed by an operator".into());
    let reason = crate::mail::text::printable(reason.as_bytes());
    match within(context.server.remove(id, reason)).await? {
        true => Ok(Json(Removed { removed: true })),
        false => Err(unknown(id)),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RetryQuery {
    domain: Option<String>,
    all: Option<bool>,
}

async fn retry(
    Shared(context): Shared<Arc<Context>>,
    query: Result<Query<RetryQuery>, QueryRejection>,
) -> Answer<Retried> {
    let Query(query) = query?;
    let domain = match (query.domain, query.all) {
        (Some(domain), None | Some(false)) => Some(parse_domain(&domain)?),
        (None, Some(true)) => None,
        _ => return Err(bad("say what to retry: ?domain=NAME or ?all=true")),
    };
    let retried = within(context.server.retry(domain)).await?;
    Ok(Json(Retried { retried }))
}
