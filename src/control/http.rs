//! The routes: health, metrics, counters, mail, the queue and orders about it, suspensions, why.
//!
//! Owns: paths, query parameters and answers. Promises: every answer but `/metrics` and the probes is
//! JSON, an error `{"error": "…"}` with what to do; a query that is not understood is refused, never
//! guessed at; mail under way takes bounded memory. Must not: wait for a worker longer than
//! `limits::CONTROL_REPLY_WAIT`, or `limits::INJECTION_REPLY_WAIT` for mail.
use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{ConnectInfo, Path, Query, Request, State as Shared};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::counters::{ProcessView, Report};
use super::inject::{self, Asked, Injected, Said};
use super::listener::Caller;
use super::order::{Act, OperationView, Operations, Order};
use super::selector::{self, Selector};
use super::view::{Resumed, State, SuspensionView, Timestamp};
use super::{BoxFuture, ControlConfig, Server, guard, metrics};
use crate::clock::WallTime;
use crate::config::grammar;
use crate::limits;
use crate::mail::address::Domain;
use crate::mail::id::MessageId;

/// What every route may use.
pub struct Context {
    config: ControlConfig,
    server: Arc<dyn Server>,
    operations: Operations,
    /// Of the bytes of requests with mail.
    injection_room: Arc<Semaphore>,
    started: Instant,
}

impl Context {
    pub fn new(config: ControlConfig, server: Arc<dyn Server>) -> Context {
        let injection_room = Arc::new(Semaphore::new(config.injection_bytes));
        Context { config, server, operations: Operations::default(), injection_room, started: Instant::now() }
    }
}

/// A request that is not answered with what it asked for.
struct Failure(StatusCode, String);

type Answer<T> = Result<Json<T>, Failure>;

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = (self.0, Json(serde_json::json!({ "error": self.1 }))).into_response();
        if matches!(self.0, StatusCode::SERVICE_UNAVAILABLE | StatusCode::INSUFFICIENT_STORAGE) {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(limits::RETRY_AFTER.as_secs()));
        }
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
        .route("/api/v1/queue/{act}", post(operate))
        .route("/api/v1/operations", get(operations))
        .route("/api/v1/operations/{number}", get(operation))
        .route("/api/v1/messages", post(inject))
        .route("/api/v1/messages/{id}", get(show))
        .route("/api/v1/destinations/{domain}/suspend", post(suspend))
        .route("/api/v1/destinations/{domain}/resume", post(resume))
        .route("/api/v1/suspensions", get(suspensions))
        .route("/api/v1/why/{subject}", get(why))
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

async fn queue(
    Shared(context): Shared<Arc<Context>>,
    query: Result<Query<selector::Query>, QueryRejection>,
) -> Answer<impl Serialize> {
    let Query(query) = query?;
    let limit = parse_limit(query.limit)?;
    let selector = Selector::read(&query, WallTime::now(), false).map_err(bad)?;
    within(context.server.list(selector, limit)).await.map(Json)
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

/// Accepts mail: one message or a list.
async fn inject(
    Shared(context): Shared<Arc<Context>>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    request: Request,
) -> Result<Response, Failure> {
    let (body, _room) = injection_body(&context, request).await?;
    let max_recipients = context.config.max_recipients;
    // A large one must not keep health probes waiting.
    let asked = if body.len() > limits::INJECTION_AT_ONCE_BYTES {
        let read = move || inject::read(&body, max_recipients);
        let read = tokio::task::spawn_blocking(read).await;
        read.map_err(|error| Failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?
    } else {
        inject::read(&body, max_recipients)
    };
    let (messages, is_list) = match asked.map_err(bad)? {
        Asked::One(message) => (vec![message], false),
        Asked::Many(messages) => (messages, true),
    };
    let answer = context.server.inject(messages, caller.0);
    let injected = tokio::time::timeout(limits::INJECTION_REPLY_WAIT, answer).await.map_err(|_| {
        let text = "it is not known in time whether the mail is stored: it may be accepted yet";
        Failure(StatusCode::GATEWAY_TIMEOUT, text.into())
    })?;
    let said: Vec<Said> = injected.iter().map(Said::of).collect();
    match &injected[..] {
        [Injected::Refused(why, text)] if !is_list => Err(Failure(why.status(), text.to_string())),
        [Injected::Accepted(_)] if !is_list => Ok(Json(&said[0]).into_response()),
        many if many.iter().all(|one| matches!(one, Injected::Accepted(_))) => Ok(Json(said).into_response()),
        // Whoever looks at the status alone must see that there is more to know.
        _ => Ok((StatusCode::MULTI_STATUS, Json(said)).into_response()),
    }
}

/// The body of a request with mail, once there is room for it.
async fn injection_body(
    context: &Context,
    request: Request,
) -> Result<(Bytes, OwnedSemaphorePermit), Failure> {
    let (head, body) = request.into_parts();
    let length = injection_bytes(&head.headers, context.config.injection_bytes)?;
    let room = context.injection_room.clone().try_acquire_many_owned(length);
    let room = room.map_err(|_| {
        Failure(StatusCode::SERVICE_UNAVAILABLE, "too much mail comes in at this moment: try again".into())
    })?;
    let body = axum::body::to_bytes(body, length as usize);
    match tokio::time::timeout(limits::INJECTION_BODY_WAIT, body).await {
        Ok(Ok(body)) => Ok((body, room)),
        Ok(Err(error)) => Err(bad(format!("the request is cut off: {error}"))),
        Err(_) => Err(Failure(StatusCode::REQUEST_TIMEOUT, "the request comes too slowly".into())),
    }
}

/// How long a request with mail says it is, if it is one that is taken.
fn injection_bytes(headers: &HeaderMap, most: usize) -> Result<u32, Failure> {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let kind = header(CONTENT_TYPE).and_then(|kind| kind.split(';').next()).unwrap_or_default();
    if !kind.trim().eq_ignore_ascii_case("application/json") {
        let text = "send JSON, with Content-Type: application/json";
        return Err(Failure(StatusCode::UNSUPPORTED_MEDIA_TYPE, text.into()));
    }
    let Some(length) = header(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok()) else {
        return Err(Failure(StatusCode::LENGTH_REQUIRED, "send a Content-Length".into()));
    };
    u32::try_from(length).ok().filter(|&length| length as usize <= most).ok_or_else(|| {
        let most = grammar::show_size(most as u64);
        let text = format!("a request holds {most} at most: send larger mail by SMTP");
        Failure(StatusCode::PAYLOAD_TOO_LARGE, text)
    })
}

async fn show(Shared(context): Shared<Arc<Context>>, Path(id): Path<String>) -> Answer<impl Serialize> {
    let id = parse_id(&id)?;
    within(context.server.show(id)).await?.map(Json).ok_or_else(|| unknown(id))
}

/// Begins an order and waits a moment for its end.
async fn operate(
    Shared(context): Shared<Arc<Context>>,
    Path(act): Path<String>,
    query: Result<Query<selector::Query>, QueryRejection>,
) -> Answer<impl Serialize> {
    let acts = || Act::ALL.map(Act::as_str).join(", ");
    let act: Act = act.parse().map_err(|()| bad(format!("write one of {}", acts())))?;
    let Query(query) = query?;
    let selector = Selector::read(&query, WallTime::now(), true).map_err(bad)?;
    if !matches!(selector.state, None | Some(State::Ready | State::Deferred | State::Held)) {
        return Err(bad("state: only what is ready, deferred or held can be acted on"));
    }
    let to = match (act, &query.to) {
        (Act::Move, Some(to)) => Some(parse_domain(to)?),
        (Act::Move, None) => return Err(bad("say where to move it: to=DOMAIN")),
        (_, None) => None,
        (_, Some(_)) => return Err(bad("to goes with move only")),
    };
    let reason = reason(query.reason);
    let dry_run = query.dry_run.unwrap_or_default();
    let order = Order { act, selector, to, reason: reason.into(), dry_run };
    let server = context.server.clone();
    let number = context
        .operations
        .begin(order, move |order, progress| server.operate(order, progress))
        .map_err(|why| Failure(StatusCode::TOO_MANY_REQUESTS, why))?;
    operation_view(&context, number).await
}

/// As it is recorded and shown: cut at `limits::FOREIGN_TEXT_BYTES`.
fn reason(given: Option<String>) -> String {
    let text = given.unwrap_or_else(|| "no reason given".into());
    crate::mail::text::printable(text.as_bytes())
}

async fn operation_view(context: &Context, number: u64) -> Answer<OperationView> {
    let view = context.operations.view(number, limits::OPERATION_REPLY_WAIT).await;
    let view = view.map(Json);
    view.ok_or_else(|| {
        Failure(StatusCode::NOT_FOUND, format!("no operation {number}: it ended long ago, or never was"))
    })
}

async fn operation(
    Shared(context): Shared<Arc<Context>>,
    Path(number): Path<String>,
) -> Answer<OperationView> {
    let number = number.parse().map_err(|_| bad("an operation is a number"))?;
    operation_view(&context, number).await
}

async fn operations(Shared(context): Shared<Arc<Context>>) -> Json<Vec<OperationView>> {
    Json(context.operations.list())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SuspendQuery {
    reason: Option<String>,
    /// How long; without it until it is resumed.
    #[serde(rename = "for")]
    time: Option<String>,
}

async fn suspend(
    Shared(context): Shared<Arc<Context>>,
    Path(domain): Path<String>,
    query: Result<Query<SuspendQuery>, QueryRejection>,
) -> Answer<SuspensionView> {
    let (Query(query), domain, now) = (query?, parse_domain(&domain)?, WallTime::now());
    let time = query.time.as_deref().map(grammar::duration).transpose();
    let time = time.map_err(|why| bad(format!("for: {why}")))?;
    let view = SuspensionView {
        destination: domain.to_string(),
        since: Timestamp(now),
        until: time.map(|time| Timestamp(now.saturating_add(time))),
        reason: reason(query.reason),
    };
    match within(context.server.suspend(domain, view.clone())).await? {
        Ok(()) => Ok(Json(view)),
        Err(why) => Err(Failure(StatusCode::SERVICE_UNAVAILABLE, why)),
    }
}

async fn resume(
    Shared(context): Shared<Arc<Context>>,
    Path(domain): Path<String>,
    query: Result<Query<SuspendQuery>, QueryRejection>,
) -> Answer<Resumed> {
    let (Query(query), domain) = (query?, parse_domain(&domain)?);
    if query.time.is_some() {
        return Err(bad("for goes with suspend only"));
    }
    match within(context.server.resume(domain, reason(query.reason))).await? {
        Ok(resumed) => Ok(Json(Resumed { resumed })),
        Err(why) => Err(Failure(StatusCode::SERVICE_UNAVAILABLE, why)),
    }
}

async fn suspensions(Shared(context): Shared<Arc<Context>>) -> Json<Vec<SuspensionView>> {
    Json(context.server.suspensions())
}

/// Of a message id or a destination.
async fn why(
    Shared(context): Shared<Arc<Context>>,
    Path(subject): Path<String>,
) -> Result<Response, Failure> {
    if let Ok(id) = subject.parse::<MessageId>() {
        let view = within(context.server.why_message(id)).await?;
        return view.map(|view| Json(view).into_response()).ok_or_else(|| unknown(id));
    }
    let domain = parse_domain(&subject)?;
    Ok(Json(within(context.server.why_destination(domain)).await?).into_response())
}
