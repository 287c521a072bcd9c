//! What the mesh itself answers, when no app does: one reason, one status, Envoy's response flag for it.

use http::StatusCode;

/// Why the mesh answered in the app's place; the value of `x-hanse-reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The request names no host, or two.
    BadRequest,
    /// More header fields than a request may have.
    HeadTooLarge,
    /// A body of more bytes than the service's policy takes.
    BodyTooLarge,
    /// A body that hardly comes.
    BodyTooSlow,
    /// The Host is not a service's name.
    UnknownHost,
    NoRoute,
    NoBackend,
    /// The backend is in another namespace, where no ReferenceGrant lets the route name it.
    RefNotPermitted,
    /// No cluster that we know offers it.
    NoSuchService,
    NoHealthyEndpoint,
    /// No SVID or no View yet.
    NotReady,
    /// Our own identity, or the caller's, is revoked.
    Revoked,
    /// The caller's cluster may not use the service.
    NotAllowed,
    Overload,
    /// A limit of the service's policy is reached here, before anything was sent.
    Overflow,
    /// No attempt reached anybody.
    Unreachable,
    /// The connection broke under the request.
    ConnectionLost,
    Timeout,
    /// The app behind this proxy takes no connections: the request was not delivered.
    AppUnreachable,
    /// The app broke off before it answered: the request may have been worked on.
    AppReset,
    /// The end user's token is not believed.
    Unauthenticated,
    /// An external authorizer said no.
    DeniedExternally,
    /// An external authorizer said nothing that could be used.
    AuthorizerSilent,
    /// A RateLimit of the service is reached.
    RateLimited,
    /// The app behind this proxy has all that it can do (BackendPolicy.limits.concurrency); nothing was sent to it.
    Shed,
    /// A client outside asks for a host by a connection that was made for another.
    Misdirected,
    /// This proxy stands in front of a client only.
    NothingServed,
}

/// gRPC's word for an answer that was not made by a gRPC server (gRPC, "HTTP to gRPC Status Code Mapping"; our 504 is a
/// deadline's, our 413 and 429 are limits').
pub fn grpc_status(status: StatusCode) -> u8 {
    const UNKNOWN: u8 = 2;
    const DEADLINE_EXCEEDED: u8 = 4;
    const PERMISSION_DENIED: u8 = 7;
    const RESOURCE_EXHAUSTED: u8 = 8;
    const UNIMPLEMENTED: u8 = 12;
    const INTERNAL: u8 = 13;
    const UNAVAILABLE: u8 = 14;
    const UNAUTHENTICATED: u8 = 16;
    match status {
        StatusCode::BAD_REQUEST => INTERNAL,
        StatusCode::UNAUTHORIZED => UNAUTHENTICATED,
        StatusCode::FORBIDDEN => PERMISSION_DENIED,
        StatusCode::NOT_FOUND => UNIMPLEMENTED,
        StatusCode::GATEWAY_TIMEOUT => DEADLINE_EXCEEDED,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::PAYLOAD_TOO_LARGE => RESOURCE_EXHAUSTED,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

impl Reason {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad-request",
            Self::HeadTooLarge => "head-too-large",
            Self::BodyTooLarge => "body-too-large",
            Self::BodyTooSlow => "body-too-slow",
            Self::UnknownHost => "unknown-host",
            Self::NoRoute => "no-route",
            Self::NoBackend => "no-backend",
            Self::RefNotPermitted => "ref-not-permitted",
            Self::NoSuchService => "no-such-service",
            Self::NoHealthyEndpoint => "no-healthy-endpoint",
            Self::NotReady => "not-ready",
            Self::Revoked => "revoked",
            Self::NotAllowed => "not-allowed",
            Self::Overload => "overload",
            Self::Overflow => "overflow",
            Self::Unreachable => "unreachable",
            Self::ConnectionLost => "connection-lost",
            Self::Timeout => "timeout",
            Self::AppUnreachable => "app-unreachable",
            Self::AppReset => "app-reset",
            Self::Unauthenticated => "unauthenticated",
            Self::DeniedExternally => "denied-externally",
            Self::AuthorizerSilent => "authorizer-silent",
            Self::RateLimited => "rate-limited",
            Self::Shed => "shed",
            Self::Misdirected => "misdirected",
            Self::NothingServed => "nothing-served",
        }
    }

    pub const fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::UnknownHost | Self::NoRoute | Self::NothingServed => StatusCode::NOT_FOUND,
            Self::NoBackend | Self::RefNotPermitted => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::Revoked | Self::NotAllowed => StatusCode::FORBIDDEN,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            // No 5xx: a healthy endpoint would be blamed for its authorizer.
            Self::DeniedExternally | Self::AuthorizerSilent => StatusCode::FORBIDDEN,
            Self::NoSuchService
            | Self::NoHealthyEndpoint
            | Self::NotReady
            | Self::Overload
            | Self::Overflow
            | Self::Shed
            | Self::Unreachable
            | Self::AppUnreachable => StatusCode::SERVICE_UNAVAILABLE,
            Self::ConnectionLost | Self::AppReset => StatusCode::BAD_GATEWAY,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// Envoy's response flag, or `-`.
    pub const fn flags(self) -> &'static str {
        match self {
            Self::UnknownHost
            | Self::NoRoute
            | Self::NoBackend
            | Self::RefNotPermitted
            | Self::NothingServed => "NR",
            Self::NoSuchService => "NC",
            Self::NoHealthyEndpoint => "UH",
            Self::Overload | Self::Overflow => "UO",
            Self::Unreachable | Self::AppUnreachable => "UF",
            Self::ConnectionLost | Self::AppReset => "UC",
            Self::Timeout => "UT",
            Self::DeniedExternally | Self::AuthorizerSilent => "UAEX",
            Self::RateLimited => "RL",
            // Of Envoy's overload manager.
            Self::Shed => "OM",
            // Of a stream that brings nothing.
            Self::BodyTooSlow => "SI",
            Self::BadRequest
            | Self::HeadTooLarge
            | Self::BodyTooLarge
            | Self::NotReady
            | Self::Revoked
            | Self::NotAllowed
            | Self::Misdirected
            | Self::Unauthenticated => "-",
        }
    }

    /// Whether the reason, as another proxy wrote it, says that the request never reached an app.
    pub fn says_undelivered(text: &str) -> bool {
        [Self::AppUnreachable, Self::NotReady, Self::Overload, Self::NothingServed]
            .iter()
            .any(|reason| reason.as_str() == text)
    }
}
