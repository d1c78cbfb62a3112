//! What a backend gets in place of what the provider sent: another method, other headers, another path, and a body made from
//! a template. Pure. A template that fails makes no request at all: half a body is never sent.

use http::{HeaderName, HeaderValue, Method};

use crate::secret::Secret;

mod body;
mod path;

pub use body::{BodyTemplate, TemplateError, builtin, builtins};
pub use path::{PathError, PathTemplate};

/// How the requests of a destination differ from what the provider sent; not at all by default.
#[derive(Debug, Clone, Default)]
pub struct Shape {
    /// The method; the provider's own when absent.
    pub method: Option<Method>,
    /// The body; the provider's own when absent.
    pub body: Option<Templated>,
    /// Path and query; the URL's own when absent.
    pub path: Option<PathTemplate>,
    /// Headers of the provider that go under another name.
    pub rename_headers: Vec<(HeaderName, HeaderName)>,
    /// Headers of the provider that do not go on.
    pub remove_headers: Vec<HeaderName>,
}

/// A body of ours.
#[derive(Debug, Clone)]
pub struct Templated {
    /// What makes it.
    pub template: BodyTemplate,
    /// What it is.
    pub content_type: HeaderValue,
    /// Those of the template's values that are secret.
    pub secrets: Vec<Secret>,
}
