//! Who may ask: names of the server ([`check_host`]), pages of other sites ([`check_origin`]), keys ([`check_key`]).

use std::net::IpAddr;

use axum::http::{HeaderMap, Method, header};

use crate::api::error::ApiError;
use crate::options::Options;

/// The address of the server's end of a connection, where there is one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalAddress(pub IpAddr);

/// The host of `Host` or of an origin, without its port.
fn host_of(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    }
}

/// Whether this is a name of this machine for itself.
fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn is_own(host: &str, options: &Options, local: Option<LocalAddress>) -> bool {
    let is_local = |LocalAddress(address)| host.parse::<IpAddr>() == Ok(address);
    let is_named = |name: &String| host.eq_ignore_ascii_case(name);
    is_loopback(host)
        || host.eq_ignore_ascii_case(&options.host)
        || local.is_some_and(is_local)
        || options.allowed_hosts.iter().any(is_named)
}

/// Refuses requests to names that are not the server's: a page of another site may have had its own name point here.
pub(crate) fn check_host(headers: &HeaderMap, options: &Options, local: Option<LocalAddress>) -> Result<(), ApiError> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !host.is_empty() && headers.get_all(header::HOST).iter().count() == 1 && is_own(host_of(host), options, local) {
        return Ok(());
    }
    Err(ApiError::forbidden("Host: not a name of this server (--allowed-host adds one)"))
}

/// Refuses what pages of other sites send. Returns the origin that may read the answer, where it is a foreign one.
pub(crate) fn check_origin<'o>(
    method: &Method,
    headers: &HeaderMap,
    options: &'o Options,
    local: Option<LocalAddress>,
) -> Result<Option<&'o str>, ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(None) };
    let origin = origin.to_str().unwrap_or_default();
    if let Some(allowed) = options.cors_origin.as_deref().filter(|allowed| *allowed == origin) {
        return Ok(Some(allowed));
    }
    let host = origin.split_once("://").map_or("", |(_, authority)| host_of(authority));
    let is_same = !host.is_empty() && is_own(host, options, local) && {
        // Another port of this machine is another site.
        let own = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        origin.split_once("://").is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(own))
    };
    if is_same || matches!(*method, Method::GET | Method::HEAD) {
        return Ok(None);
    }
    Err(ApiError::forbidden("Origin: a page of another site (--cors-origin allows one)"))
}

/// Refuses requests without one of the keys.
pub(crate) fn check_key(headers: &HeaderMap, options: &Options) -> Result<(), ApiError> {
    if options.keys.is_empty() {
        return Ok(());
    }
    let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let given = given.and_then(|value| value.strip_prefix(b"Bearer ")).unwrap_or_default();
    // All of them are compared, whichever fits.
    let fits = options.keys.iter().fold(false, |fits, key| fits | is_equal(given, key.as_bytes()));
    if fits { Ok(()) } else { Err(ApiError::unauthorized()) }
}

/// Whether the bytes are equal, in a time that depends on the length of `given` alone.
fn is_equal(given: &[u8], key: &[u8]) -> bool {
    let mut difference = usize::from(given.len() != key.len());
    for (i, byte) in given.iter().enumerate() {
        difference |= usize::from(byte ^ key.get(i).copied().unwrap_or_default());
    }
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(list: &[(header::HeaderName, &str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn only_own_names_are_answered() {
        let options = Options { host: "0.0.0.0".into(), allowed_hosts: vec!["box.lan".into()], ..Options::default() };
        let local = Some(LocalAddress("192.168.1.5".parse().unwrap()));
        for (host, want) in [
            ("127.0.0.1:8080", true),
            ("localhost", true),
            ("LOCALHOST:1", true),
            ("[::1]:8080", true),
            ("127.9.9.9", true),
            ("box.lan:80", true),
            ("192.168.1.5:8080", true),
            ("192.168.1.6:8080", false),
            ("evil.example", false),
            ("localhost.evil.example:8080", false),
            ("127.0.0.1.evil.example", false),
            ("", false),
        ] {
            assert_eq!(check_host(&headers(&[(header::HOST, host)]), &options, local).is_ok(), want, "{host}");
        }
        assert!(check_host(&HeaderMap::new(), &options, local).is_err());
    }

    #[test]
    fn pages_of_other_sites_send_nothing() {
        let options = Options::default();
        let ask = |method: Method, origin: &str, options: &Options| {
            let headers = headers(&[(header::HOST, "localhost:8080"), (header::ORIGIN, origin)]);
            check_origin(&method, &headers, options, None).map(|origin| origin.map(str::to_owned)).map_err(|e| e.status)
        };
        assert_eq!(ask(Method::POST, "http://localhost:8080", &options), Ok(None));
        for foreign in ["http://evil.example", "null", "http://localhost:9", "https://localhost", ""] {
            assert_eq!(ask(Method::POST, foreign, &options), Err(403), "{foreign}");
            assert_eq!(ask(Method::GET, foreign, &options), Ok(None));
        }
        let open = Options { cors_origin: Some("http://app.lan".into()), ..options };
        assert_eq!(ask(Method::POST, "http://app.lan", &open), Ok(Some("http://app.lan".into())));
        assert_eq!(ask(Method::OPTIONS, "http://app.lan.evil", &open), Err(403));
    }

    #[test]
    fn keys_are_compared_whole() {
        let options = Options { keys: vec!["abc".into(), "d".into()], ..Options::default() };
        for (value, want) in [
            ("Bearer abc", true),
            ("Bearer d", true),
            ("Bearer ab", false),
            ("Bearer abcd", false),
            ("Bearer ", false),
            ("abc", false),
        ] {
            assert_eq!(check_key(&headers(&[(header::AUTHORIZATION, value)]), &options).is_ok(), want, "{value}");
        }
        assert!(check_key(&HeaderMap::new(), &options).is_err());
        assert!(check_key(&HeaderMap::new(), &Options::default()).is_ok());
    }
}
