//! What is counted of the talk with the API server, for each kind of objects: nothing else shows that it is away.

use std::sync::Arc;

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use kube::Client;
use kube::client::Body;

use crate::{observe::metrics::Metrics, owner::unix_s};

/// A client for one kind of objects, whose answers are counted. Each piece of an answer is a word of the server: of a list, a
/// change, and on a quiet watch the bookmark that comes once a minute.
pub(super) fn heard(client: Client, resource: &'static str, metrics: Arc<Metrics>) -> Client {
    metrics.api_followed(resource);
    let namespace = client.default_namespace().to_owned();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (client, metrics) = (client.clone(), Arc::clone(&metrics));
        async move {
            let answer: Result<Response<Body>, kube::Error> = client.send(request).await;
            metrics.api_answered(resource, class(answer.as_ref().ok().map(Response::status)));
            let answer = answer?;
            let is_good = answer.status().is_success();
            let note = move || {
                if is_good {
                    metrics.api_heard(resource, unix_s(Timestamp::now()));
                }
            };
            note();
            let answer = answer.map(|body| {
                body.map_frame(move |frame| {
                    note();
                    frame
                })
            });
            Ok::<_, kube::Error>(answer)
        }
    });
    Client::new(service, namespace)
}

/// The label of an answer. Single codes would be series without end; the log has them.
fn class(code: Option<StatusCode>) -> &'static str {
    match code {
        None => "none",
        Some(code) if code.is_server_error() => "5xx",
        Some(code) if code.is_client_error() => "4xx",
        // A redirection is not followed, and is not seen.
        Some(_) => "2xx",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_one_of_four_labels() {
        let of = |code: u16| class(StatusCode::from_u16(code).ok());
        assert_eq!(
            [200, 201, 403, 410, 429, 500, 503].map(of),
            ["2xx", "2xx", "4xx", "4xx", "4xx", "5xx", "5xx"]
        );
        assert_eq!(class(None), "none");
    }
}
