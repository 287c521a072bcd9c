//! CORS filters: what excludes what, and what browsers would not take.

use super::*;

#[test]
fn a_cors_filter_says_star_alone_and_is_warned_of_credentials_for_everybody() {
    for (cors, expected) in [
        ("allowOrigins: ['https://a.example', 'https://*.b.example:8443']", &[][..]),
        (
            "allowOrigins: ['*'], allowMethods: ['*'], allowHeaders: ['*'], exposeHeaders: ['*'], maxAge: 60",
            &[],
        ),
        ("allowOrigins: ['*', 'https://a.example']", &["E4005"]),
        ("allowOrigins: ['https://a.example'], allowMethods: [PUT, '*']", &["E4005"]),
        ("allowOrigins: ['https://a.example'], allowHeaders: [x-a, '*']", &["E4005"]),
        ("allowMethods: [PUT]", &["E4144"]),
        ("allowOrigins: ['*'], allowCredentials: true", &["E4144"]),
        // Whoever has a certificate, which is everybody too.
        ("allowOrigins: ['https://a.example', 'https://*'], allowCredentials: true", &["E4144"]),
        ("allowOrigins: ['http://*:8080'], allowCredentials: true", &["E4144"]),
        ("allowOrigins: ['https://*.a.example'], allowCredentials: true", &[]),
        ("allowOrigins: ['https://a.example'], allowCredentials: true, exposeHeaders: ['*']", &["E4144"]),
    ] {
        let rule = format!(
            "  - {{ filters: [{{ type: CORS, cors: {{ {cors} }} }}], backendRefs: [{{ name: reviews }}] }}"
        );
        assert_eq!(codes(&route(&rule)), expected, "{cors}");
    }
}
