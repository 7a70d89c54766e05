//! `GET /openapi.json`: what this API takes and answers, made from what stands beside each handler.

use axum::{Router, body::Bytes, http::header, response::IntoResponse, routing::get};
use serde_json::{Value, json};
use utoipa::{
    OpenApi,
    openapi::{RefOr, schema::Schema},
};

use super::{health, jobs, payments, provider, summary, versioned, vms};

const PATH: &str = "/openapi.json";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Golem VM provider",
        description = "Rents out virtual machines. Every answer carries `x-request-id`; errors hold `detail`, `code` and `request_id`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    paths(
        vms::create,
        vms::list,
        vms::one,
        vms::access,
        vms::stop,
        vms::start,
        vms::add_key,
        vms::delete,
        jobs::job,
        payments::stream,
        payments::streams,
        provider::info,
        summary::summary,
        health::health,
        described,
    )
)]
struct Document;

/// What any request can be answered with, whatever it asks for: status, description.
const OF_ANY_REQUEST: [(&str, &str); 7] = [
    (
        "401",
        "The request is signed, and the signature does not count; or it is not signed, and has to be",
    ),
    ("408", "The body, which a signature is about, came too slowly"),
    ("413", "The body, which a signature is about, is too long"),
    ("414", "The request's address is too long"),
    (
        "429",
        "Too many requests from this address; `Retry-After` tells when the next one is welcome",
    ),
    ("431", "The request's headers are too long"),
    ("500", "The provider made a mistake"),
];

/// Those of them that `/health` never answers, since it is neither limited nor anybody's.
const OF_COUNTED_REQUESTS: [&str; 4] = ["401", "408", "413", "429"];

/// How requests are signed.
const SIGNING: &str = r"`Authorization: Golem ADDRESS:SIGNATURE;timestamp=SECONDS;nonce=NONCE`

The signature is that of EIP-191 (`personal_sign`): 0x, then r, s (the lower one) and 27 or 28 in hex. These seven lines are
signed, with nothing behind the last:

```
Golem provider request, version 1
provider: ADDRESS
method: POST
path: /api/v1/vms?async=true
body-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
timestamp: SECONDS
nonce: NONCE
```

The provider's address is `provider_id` of `/provider/info`. A signature counts for 60 s before and after its timestamp (seconds since
1970), and once: each request has a nonce of its own, 8 to 64 letters, digits, `-` and `_`.";

/// The document.
fn document() -> Value {
    // Texts at compile time; a test reads them back.
    let mut document = serde_json::to_value(Document::openapi()).unwrap_or_default();
    document["components"]["headers"] = json!({
        "RequestId": {
            "description": "The request's id: the client's own `X-Request-Id` where that is letters, digits, `.`, `_` and `-`, at most 64 of them; else a new one.",
            "required": true,
            "schema": {"type": "string", "minLength": 1, "maxLength": 64},
        },
        "RetryAfter": {
            "description": "After how many seconds the next request is welcome.",
            "required": true,
            "schema": {"type": "integer", "minimum": 1},
        },
        "Location": {
            "description": "Where to look next: at the VM, or at the job that makes it.",
            "required": true,
            "schema": {"type": "string", "format": "uri-reference"},
        },
        "WwwAuthenticate": {
            "description": "The scheme that is understood: `Golem`.",
            "required": true,
            "schema": {"type": "string"},
        },
    });
    document["components"]["securitySchemes"] = json!({
        "Golem": {
            "type": "http",
            "scheme": "Golem",
            "description": SIGNING,
        },
    });
    // Whoever does not sign is nobody, which is enough for what belongs to nobody.
    document["security"] = json!([{}, {"Golem": []}]);
    for (status, description) in OF_ANY_REQUEST {
        document["components"]["responses"][status] = json!({
            "description": description,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        });
        add_headers(&mut document["components"]["responses"][status], status);
    }
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    let operations = paths.flat_map(|(path, operations)| {
        operations
            .as_object_mut()
            .into_iter()
            .flatten()
            .map(|operation| (path.clone(), operation.1))
    });
    for (path, operation) in operations {
        let Some(responses) = operation["responses"].as_object_mut() else { continue };
        responses.iter_mut().for_each(|(status, response)| add_headers(response, status));
        for (status, _) in OF_ANY_REQUEST {
            if OF_COUNTED_REQUESTS.contains(&status) && health::is_health(&path) {
                continue;
            }
            let reference = json!({"$ref": format!("#/components/responses/{status}")});
            responses.entry(status).or_insert(reference);
        }
    }
    document
}

fn add_headers(response: &mut Value, status: &str) {
    let header = |name: &str| json!({"$ref": format!("#/components/headers/{name}")});
    response["headers"]["X-Request-Id"] = header("RequestId");
    if status == "429" {
        response["headers"]["Retry-After"] = header("RetryAfter");
    }
    if status == "401" {
        response["headers"]["WWW-Authenticate"] = header("WwwAuthenticate");
    }
    // The two ways in which a VM is made.
    let makes = response.pointer("/content/application~1json/schema/$ref").is_some_and(|schema| {
        status == "201" || (status == "202" && schema == "#/components/schemas/Accepted")
    });
    if makes {
        response["headers"]["Location"] = header("Location");
    }
}

/// A schema that a derived one could not be exact enough for.
pub fn schema(schema: Value) -> RefOr<Schema> {
    // Written in this program, and read back by a test.
    serde_json::from_value(schema).unwrap_or_default()
}

/// This document
#[utoipa::path(get, path = "/openapi.json", tag = "provider", responses((status = 200, body = Object)))]
#[expect(dead_code, reason = "describes the route that `answer` makes")]
fn described() {}

/// The route with its one answer.
pub fn answer() -> Router {
    let body = Bytes::from(document().to_string());
    let answer =
        get(async move || ([(header::CONTENT_TYPE, "application/json")], body).into_response());
    Router::new().route(PATH, answer.clone()).route(&versioned(PATH), answer)
}
