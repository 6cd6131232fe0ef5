//! The attempts of one request, until one of them stands.

use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use tokio::time::{Instant, Sleep};

use crate::balance::subset::Metadata;
use crate::config::model::response_flag::ResponseFlag;
use crate::config::model::route::{Forward, WeightedCluster};
use crate::proxy::lb::{self, Target};
use crate::proxy::stats::count;
use crate::snapshot::ClusterView;
use crate::snapshot::outlier;

use super::body::{Progress, RequestBody};
use super::exchange::Exchange;
use super::forward::{answered, failed};
use super::headers;
use super::internal_redirect::Again;
use super::message::{Reply, Request};
use super::replay::Tape;
use super::reply::{DEADLINE_EXCEEDED, http_status, local};
use super::retry::{Retry, Verdict};
use super::rewrite;
use super::timeouts::{Deadlines, Reached, Timeouts};
use super::upstream::{Answer, Failure, Serving};

/// What a request brings to its attempts.
pub(super) struct Attempts<'a> {
    pub(super) exchange: &'a Exchange<'a>,
    pub(super) cluster: &'a Arc<ClusterView>,
    pub(super) forward: &'a Forward,
    pub(super) weighted: Option<&'a WeightedCluster>,
    pub(super) timeouts: Timeouts,
    pub(super) retry: Option<Retry>,
    pub(super) progress: Progress,
    pub(super) started: Instant,
    pub(super) hash: Option<u64>,
    pub(super) subset: Option<Arc<Metadata>>,
    /// The client asked for another protocol.
    pub(super) upgrade: Option<HeaderValue>,
}

/// What came of a request.
pub(super) struct Ran {
    pub(super) reply: Reply,
    /// The endpoint it is from.
    pub(super) from: Option<Target>,
    /// What the endpoint was asked, if its answer is a redirect that may be followed.
    pub(super) sent: Option<Box<Again>>,
}

/// How an attempt went.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one of them, for a moment"
)]
enum Outcome {
    Answered(Answer),
    Failed(Failure),
    /// The attempt took too long.
    PerTry,
    /// The whole request did.
    Over(Reached),
}

/// The body of the next attempt.
enum Source {
    Once(Option<RequestBody>),
    Kept(Rc<Tape>),
}

impl Source {
    fn body(&mut self) -> Option<RequestBody> {
        match self {
            Self::Once(body) => body.take(),
            Self::Kept(tape) => Some(tape.body()),
        }
    }

    fn can_replay(&self) -> bool {
        match self {
            Self::Once(body) => body.is_some(),
            Self::Kept(tape) => tape.can_replay(),
        }
    }
}

impl Attempts<'_> {
    /// Sends the request, to `target` first, and returns the reply with the endpoint it is from.
    pub(super) async fn run(
        mut self,
        mut target: Target,
        mut request: Request,
        body: RequestBody,
    ) -> Ran {
        let mut deadlines = Deadlines::new(&self.timeouts, &self.progress);
        let kept = self.retry.is_some() || self.forward.internal_redirect.is_some();
        let mut source = if kept {
            Source::Kept(Tape::new(body, self.forward.buffer_limit))
        } else {
            Source::Once(Some(body))
        };
        let mut sent = None;
        let mut number: u32 = 1;
        let mut expired = false;
        let (mut reply, from) = loop {
            let breakers = self.cluster.breakers.of(self.forward.priority);
            let Some(serving) = Serving::begin(self.cluster, &target, self.forward.priority) else {
                break (failed(Failure::Overflow, number > 1, None), Some(target));
            };
            self.exchange.record.attempt(&target, number);
            let Some(body) = source.body() else {
                break (failed(Failure::Reset, number > 1, None), Some(target));
            };
            let outcome = self
                .attempt(&serving, &mut request, body, &mut deadlines)
                .await;
            if let Some(seen) = seen(&outcome) {
                serving.observe(seen);
            }
            if let Outcome::Answered(answer) = &outcome {
                serving.reported(&answer.headers);
            }
            if let Some(retry) = &mut self.retry {
                retry.tried.add(self.cluster, &target);
            }
            if request.early.as_ref().is_some_and(|early| early.begun()) {
                // The client has heard of this attempt.
                self.retry = None;
            }
            if self.retry.is_some() && !source.can_replay() {
                count(&self.cluster.state.stats.retry_or_shadow_abandoned);
                self.retry = None;
            }
            let retry = self.retry.as_mut();
            let timed_out = matches!(outcome, Outcome::PerTry);
            if timed_out {
                serving.per_try_timed_out();
            }
            let verdict = match (&outcome, retry) {
                (Outcome::Over(_), _) | (_, None) => Verdict::Stands,
                (Outcome::Answered(answer), Some(retry)) => {
                    retry.after_response(self.cluster, breakers, answer.status, &answer.headers)
                }
                (Outcome::Failed(failure), Some(retry)) => {
                    retry.after_failure(self.cluster, breakers, *failure)
                }
                (Outcome::PerTry, Some(retry)) => retry.after_timeout(self.cluster, breakers),
            };
            let Verdict::Again(wait) = verdict else {
                expired = matches!(outcome, Outcome::Over(Reached::Stream));
                if matches!(verdict, Verdict::LimitExceeded) {
                    let flag = ResponseFlag::UpstreamRetryLimitExceeded;
                    self.exchange.record.flag(flag);
                }
                if let Outcome::Answered(answer) = &outcome {
                    sent = self.sent_for(answer.status, &source, &request);
                }
                let followed = sent.is_some();
                let source = (&source, followed);
                let reply = self.stands(outcome, &serving, deadlines, source, number > 1);
                break (reply, Some(target));
            };
            if let Outcome::Answered(answer) = &outcome {
                serving.retried(answer.status);
            }
            drop((outcome, serving));
            if let Some(reached) = self.waited(wait, &mut deadlines).await {
                expired = reached == Reached::Stream;
                break (self.over(reached), Some(target));
            }
            let asked = self.asked(&request);
            let Some(next) = lb::pick(self.cluster, &asked) else {
                count(&self.cluster.state.stats.upstream_cx_none_healthy);
                break (none_healthy(), None);
            };
            target = next;
            number += 1;
            self.prepare(&mut request, &target, number, timed_out);
        };
        // The longest life of a stream is not the router's concern.
        if self.exchange.host.include_attempt_count_in_response && !expired {
            let number = HeaderValue::from(number);
            reply.headers.insert(headers::ATTEMPT_COUNT, number);
        }
        Ran { reply, from, sent }
    }

    /// What was asked, if a response of this status may lead elsewhere and nothing of the body is
    /// missing.
    fn sent_for(
        &self,
        status: StatusCode,
        source: &Source,
        request: &Request,
    ) -> Option<Box<Again>> {
        let policy = self.forward.internal_redirect.as_ref()?;
        let Source::Kept(tape) = source else {
            return None;
        };
        let whole = self.progress.ended() && tape.can_replay();
        (policy.statuses.contains(&status) && whole && self.upgrade.is_none()).then(|| {
            Box::new(Again {
                request: request.clone(),
                body: tape.body(),
            })
        })
    }

    fn asked<'r>(&'r self, request: &'r Request) -> lb::Asked<'r> {
        let original = self.exchange.connection.caught.destination;
        let tried = self.retry.as_ref().map(|retry| &retry.tried);
        lb::Asked::request(original, &request.headers)
            .hashed(self.hash)
            .within(self.subset.as_deref())
            .after(tried)
    }

    /// The headers that differ from attempt to attempt.
    fn prepare(&self, request: &mut Request, target: &Target, number: u32, timed_out: bool) {
        let host = self.exchange.host;
        if host.include_request_attempt_count {
            let number = HeaderValue::from(number);
            request.headers.insert(headers::ATTEMPT_COUNT, number);
        }
        if host.include_is_timeout_retry_header {
            let value = if timed_out { "true" } else { "false" };
            let value = HeaderValue::from_static(value);
            request.headers.insert(headers::IS_TIMEOUT_RETRY, value);
        }
        if let Some(expected) = self.timeouts.expected(self.started.elapsed()) {
            let milliseconds = HeaderValue::from(expected.as_millis() as u64);
            request
                .headers
                .insert(headers::EXPECTED_TIMEOUT, milliseconds);
        }
        if let Some(authority) = rewrite::authority_of(self.forward, self.weighted, target) {
            request.authority = authority;
        }
        self.exchange.record.keep(request);
    }

    async fn attempt(
        &self,
        serving: &Serving,
        request: &mut Request,
        body: RequestBody,
        deadlines: &mut Deadlines,
    ) -> Outcome {
        let last = self.retry.is_none() && self.forward.internal_redirect.is_none();
        let sender = self.exchange.sender(self.forward);
        let sending = sender.send(serving, request, body, last);
        let mut sending = std::pin::pin!(sending);
        let mut per_try = PerTry::new(&self.timeouts);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(sent) = sending.as_mut().poll(cx) {
                return Poll::Ready(match sent {
                    Ok(answer) => Outcome::Answered(answer),
                    Err(failure) => Outcome::Failed(failure),
                });
            }
            if let Poll::Ready(reached) = deadlines.poll(cx) {
                return Poll::Ready(Outcome::Over(reached));
            }
            per_try.poll(&self.progress, cx).map(|()| Outcome::PerTry)
        })
        .await
    }

    /// Waits before the next attempt, unless the whole request has no time for it.
    async fn waited(&self, wait: Duration, deadlines: &mut Deadlines) -> Option<Reached> {
        let mut sleep = std::pin::pin!(tokio::time::sleep(wait));
        std::future::poll_fn(|cx| {
            if let Poll::Ready(reached) = deadlines.poll(cx) {
                return Poll::Ready(Some(reached));
            }
            sleep.as_mut().poll(cx).map(|()| None)
        })
        .await
    }

    /// The reply of an attempt after which there is no other.
    fn stands(
        &self,
        outcome: Outcome,
        serving: &Serving,
        deadlines: Deadlines,
        (source, followed): (&Source, bool),
        retried: bool,
    ) -> Reply {
        let reply = match outcome {
            Outcome::Answered(answer) => {
                if let (Source::Kept(tape), false) = (source, followed) {
                    tape.forget();
                }
                self.exchange.record.answered();
                let limits = &self.exchange.limits;
                let complete = self.progress.ended() && self.upgrade.is_none();
                answered(answer, self.started, deadlines, limits, serving, complete)
            }
            Outcome::Failed(failure) => {
                serving.failed();
                failed(
                    failure,
                    retried,
                    self.exchange.record.transport_failure().as_deref(),
                )
            }
            Outcome::PerTry => self
                .over(Reached::Request)
                .because("upstream_per_try_timeout"),
            Outcome::Over(reached) => {
                serving.timed_out();
                self.over(reached)
            }
        };
        serving.responded(reply.status);
        reply
    }

    /// The reply when a limit of the whole request was reached.
    fn over(&self, reached: Reached) -> Reply {
        match reached {
            Reached::Request => {
                let reply = if self.timeouts.alt_response {
                    local(StatusCode::NO_CONTENT, "")
                } else {
                    local(StatusCode::GATEWAY_TIMEOUT, "upstream request timeout")
                };
                reply
                    .because("response_timeout")
                    .flagged(ResponseFlag::UpstreamRequestTimeout)
            }
            Reached::Stream => {
                let status = if self.progress.ended() {
                    StatusCode::GATEWAY_TIMEOUT
                } else {
                    StatusCode::REQUEST_TIMEOUT
                };
                let mut reply =
                    local(status, "downstream duration timeout").because("max_duration_timeout");
                reply.grpc_status = Some(DEADLINE_EXCEEDED);
                reply
            }
        }
    }
}

/// What outlier detection makes of an attempt.
fn seen(outcome: &Outcome) -> Option<outlier::Outcome> {
    Some(match outcome {
        Outcome::Answered(answer) => {
            let grpc = answer.headers.get("grpc-status");
            let grpc = grpc.and_then(|status| status.to_str().ok()?.parse().ok());
            outlier::Outcome::Response(
                grpc.map_or(answer.status.as_u16(), |grpc| http_status(grpc).as_u16()),
            )
        }
        // Neither is the endpoint's fault.
        Outcome::Failed(Failure::Overflow | Failure::Client) | Outcome::Over(Reached::Stream) => {
            return None;
        }
        Outcome::Failed(_) => outlier::Outcome::Failed,
        Outcome::PerTry | Outcome::Over(Reached::Request) => outlier::Outcome::TimedOut,
    })
}

/// Envoy's answer when no endpoint is left.
pub(super) fn none_healthy() -> Reply {
    local(StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream")
        .because("no_healthy_upstream")
        .flagged(ResponseFlag::NoHealthyUpstream)
}

/// The limits of one attempt as they run. They begin with the end of the request.
#[derive(Debug)]
struct PerTry {
    limit: Option<Duration>,
    sleep: Option<std::pin::Pin<Box<Sleep>>>,
}

impl PerTry {
    fn new(timeouts: &Timeouts) -> Self {
        let limit = match (timeouts.per_try, timeouts.per_try_idle) {
            (Some(limit), Some(idle)) => Some(limit.min(idle)),
            (limit, idle) => limit.or(idle),
        };
        Self { limit, sleep: None }
    }

    fn poll(&mut self, progress: &Progress, cx: &mut std::task::Context<'_>) -> Poll<()> {
        let Some(limit) = self.limit else {
            return Poll::Pending;
        };
        if self.sleep.is_none() && progress.poll_ended(cx).is_pending() {
            return Poll::Pending;
        }
        self.sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)))
            .as_mut()
            .poll(cx)
    }
}
