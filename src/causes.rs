//! Errors as operators read them: with their causes, in one line.

use std::error::Error;

/// The error and all that caused it, the outermost first.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
