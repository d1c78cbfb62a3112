//! The description of the API (OpenAPI 3.1), made of the handlers and types themselves; here is what holds for all.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    ContentBuilder, HeaderBuilder, KnownFormat, ObjectBuilder, OpenApi, Ref, RefOr, ResponseBuilder,
    SchemaFormat, SecurityRequirement, Type,
};
use utoipa::{OpenApi as _, PartialSchema as _};

use super::refused::Problem;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Countersign admin API",
        description = "See and steer a gateway. Requests bear one of `admin.tokens`; without tokens, only those from this \
            machine to this machine are answered. What changes something takes a token whose role is `operator`, and is \
            logged under the target `audit`. Whoever sends many wrong tokens, or very many requests, is answered 429 for a while. Errors are problem documents (RFC 9457).",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    components(schemas(Problem))
)]
struct Base;

/// What the routes are added to.
pub(super) fn base() -> OpenApi {
    Base::openapi()
}

/// Adds what every operation has in common: its errors, and whom it answers.
pub(super) fn finish(mut document: OpenApi) -> Arc<str> {
    let problem = ContentBuilder::new().schema(Some(RefOr::Ref(Ref::from_schema_name("Problem")))).build();
    let refused = |description: &str| {
        ResponseBuilder::new().description(description).content("application/problem+json", problem.clone())
    };
    let seconds = ObjectBuilder::new()
        .schema_type(Type::Integer)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
        .build();
    let after = HeaderBuilder::new()
        .schema(Some(seconds))
        .description(Some("Seconds until it may be asked again"))
        .build();
    let too_often = refused("Too often, or too many at a time").header("Retry-After", after).build();
    let problem = refused("Refused, and why").build();
    if let Some(components) = &mut document.components {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        components.add_security_scheme("token", SecurityScheme::Http(bearer));
        components.schemas.entry("Problem".to_owned()).or_insert_with(Problem::schema);
    }
    for (path, item) in &mut document.paths.paths {
        let operations = [&mut item.get, &mut item.post];
        for operation in operations.into_iter().flatten() {
            // Readiness says in plain text why not.
            if path.starts_with("/api/") {
                let requirement = SecurityRequirement::new::<_, [String; 0], String>("token", []);
                operation.security = Some(vec![requirement]);
                let responses = &mut operation.responses.responses;
                responses.insert("429".to_owned(), RefOr::T(too_often.clone()));
                responses.insert("default".to_owned(), RefOr::T(problem.clone()));
            }
        }
    }
    document.to_json().unwrap_or_default().into()
}

/// Serves it: there is nothing in it that is not in the source.
pub(super) async fn serve(document: Arc<str>) -> Response {
    ([(CONTENT_TYPE, "application/json")], document.to_string()).into_response()
}
