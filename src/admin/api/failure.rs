//! Answers that are none: a status, a word for programs, and a sentence that says what to do.

use http::StatusCode;

use super::types::ErrorBody;
use super::types::ErrorDetail;

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::admin) struct Failure {
    pub(in crate::admin) status: StatusCode,
    pub(in crate::admin) code: &'static str,
    pub(in crate::admin) message: String,
    allowed: Option<String>,
}

impl Failure {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), allowed: None }
    }

    pub(super) fn unauthorized(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    pub(super) fn method_not_allowed(allowed: &str) -> Self {
        let message = format!("this resource knows {allowed} only");
        let failure = Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
        Self { allowed: Some(allowed.to_owned()), ..failure }
    }

    /// The methods that would be allowed, where that is what is wrong.
    pub(super) fn allowed(&self) -> Option<&str> {
        self.allowed.as_deref()
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message)
    }

    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
    }

    pub(super) fn too_large(max_bytes: usize) -> Self {
        let message = format!("send a body of at most {max_bytes} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    pub(super) fn not_json() -> Self {
        let message = "send JSON, and say so: Content-Type: application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "bad_request", message)
    }

    pub(super) fn body(&self) -> ErrorBody {
        ErrorBody { error: ErrorDetail { code: self.code.to_owned(), message: self.message.clone() } }
    }
}
