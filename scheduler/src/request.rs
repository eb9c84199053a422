//! The few writes of a scheduler, without types that would drop what they do not know.

use http::{Method, Request};
use kube::Client;
use serde_json::Value;

/// Posts an object.
pub(crate) async fn post(client: &Client, path: &str, body: &Value) -> Result<(), kube::Error> {
    send(client, Method::POST, path, "application/json", body).await
}

/// Patches an object with a strategic merge patch, which merges conditions by type.
pub(crate) async fn patch(client: &Client, path: &str, body: &Value) -> Result<(), kube::Error> {
    send(
        client,
        Method::PATCH,
        path,
        "application/strategic-merge-patch+json",
        body,
    )
    .await
}

/// Deletes an object.
pub(crate) async fn delete(client: &Client, path: &str, options: &Value) -> Result<(), kube::Error> {
    send(client, Method::DELETE, path, "application/json", options).await
}

async fn send(client: &Client, method: Method, path: &str, content: &str, body: &Value) -> Result<(), kube::Error> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, content)
        .header(http::header::ACCEPT, "application/json")
        .body(body.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    client.request_text(request).await.map(drop)
}
