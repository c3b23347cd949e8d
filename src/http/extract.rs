//! Extracts path, query and body of a request; errors are answered in JSON.

use super::Client;
use super::problem::Refused;
use axum::body::Bytes;
use axum::extract::{self, ConnectInfo, FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;

/// More than any command's body, in bytes.
pub(super) const MAX_BODY: usize = 128 << 10;

/// The path's parameters, as [`extract::Path`].
pub(super) struct Path<T>(pub T);

/// The query, as [`extract::Query`].
pub(super) struct Query<T>(pub T);

/// A whole body. Until it is complete, the request counts as incomplete.
pub(super) struct Body(pub Bytes);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Path<T>, Refused> {
        let path = extract::Path::from_request_parts(parts, state).await;
        path.map(|extract::Path(path)| Path(path)).map_err(|why| Refused::new(why.status(), why.body_text()))
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Query<T>, Refused> {
        let query = extract::Query::from_request_parts(parts, state).await;
        query.map(|extract::Query(query)| Query(query)).map_err(|why| Refused::new(why.status(), why.body_text()))
    }
}

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Body, Refused> {
        let client = request.extensions().get::<ConnectInfo<Client>>().map(|ConnectInfo(client)| client.clone());
        let length =
            request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        // A client with `Expect: 100-continue` need not send it.
        if length.is_some_and(|length: u64| length > MAX_BODY as u64) {
            return Err(Refused::too_large(MAX_BODY));
        }
        let body = Bytes::from_request(request, state).await;
        let cut = client.as_ref().and_then(Client::cut);
        if let (Some(client), None) = (client, cut) {
            client.request_complete();
        }
        body.map(Body).map_err(|why| match (why.status(), cut) {
            (_, Some(cut)) => Refused::new(cut.status(), cut.why().to_owned()),
            (StatusCode::PAYLOAD_TOO_LARGE, None) => Refused::too_large(MAX_BODY),
            (status, None) => Refused::new(status, "the body does not match the request's headers".to_owned()),
        })
    }
}
