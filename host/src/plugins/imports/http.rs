//! `http`: exchanges with granted origins, and downloads that resume.
//!
//! Redirects are followed here and not by the client, because each hop has to be granted. Names that lead to an address of
//! this machine or of its local network are refused: a granted name must not become a way in. An operator who means such a
//! server grants it by its address.

use std::{
    io::Seek,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt;
use reqwest::{
    Response, StatusCode,
    dns::{Addrs, Name, Resolve, Resolving},
    header::{CONTENT_RANGE, HeaderMap, HeaderName, HeaderValue, LOCATION, RANGE},
};
use tokio::{io::AsyncWriteExt, sync::OnceCell, time::timeout};
use url::Url;

use super::{
    blocking, fetched,
    files::{ensure_room, relative},
    io_error,
};
use crate::plugins::{
    bindings::{
        Error,
        golem::provider::http::{Checksum, Host, Method, Request, Response as Answer},
    },
    call::{CallState, PluginContext},
    limits::{
        DOWNLOAD_BYTES, HTTP_BODY_BYTES, HTTP_CONNECT, HTTP_HEADERS, HTTP_IDLE, HTTP_KEPT,
        HTTP_REDIRECTS,
    },
    vm_backend::{Progress, ProgressSink},
};

/// A download sees whether the disk still has room after as many bytes.
const ROOM_CHECKED_EVERY_BYTES: u64 = 16 << 20;

/// The HTTP client of all plugins. Made when one is first used: reading the machine's certificates takes time and memory.
#[derive(Default)]
pub struct Client(OnceCell<reqwest::Client>);

impl Client {
    async fn get(&self) -> Result<&reqwest::Client, Error> {
        self.0.get_or_try_init(|| blocking(Self::make)).await
    }

    fn make() -> Result<reqwest::Client, Error> {
        reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(HTTP_CONNECT)
            .read_timeout(HTTP_IDLE)
            // Plugins ask now and then, and servers close what is idle: a connection that is about to be closed is not used.
            .pool_idle_timeout(HTTP_KEPT)
            .user_agent(concat!("golem-provider/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(Arc::new(PublicOnly))
            .build()
            .map_err(|error| Error::Internal(format!("cannot set up the HTTP client: {error}")))
    }
}

/// Resolves names, and keeps only addresses of the public internet.
struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let public: Vec<SocketAddr> =
                found.iter().copied().filter(|address| is_public(address.ip())).collect();
            if public.is_empty() && !found.is_empty() {
                return Err(format!(
                    "{} is an address of this machine or its local network; to allow it, grant it by its address",
                    name.as_str()
                )
                .into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// Is this an address that anybody on the internet could reach?
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_broadcast()
                || v4.is_multicast()
                || a == 0
                || (a == 100 && (64..128).contains(&b))
                || a >= 240)
        }
        IpAddr::V6(v6) => {
            // Prefixes whose addresses carry an IPv4 address, which a gateway connects to.
            let embedded = match v6.segments() {
                [0x64, 0xff9b, .., high, low] => Some([high, low]),
                [0x2002, high, low, ..] => Some([high, low]),
                _ => None,
            };
            if let Some([high, low]) = embedded {
                let [[a, b], [c, d]] = [high.to_be_bytes(), low.to_be_bytes()];
                return is_public(IpAddr::from([a, b, c, d]));
            }
            !(v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unique_local()
                || v6.is_unicast_link_local())
        }
    }
}

impl Host for CallState {
    async fn send(&mut self, request: Request) -> Result<Answer, Error> {
        if let Some(script) =
            self.plugin.services.script.as_ref().filter(|script| script.plays_http())
        {
            self.plugin.grants.http(&parse(&request.url)?)?;
            return script.send(&request).await;
        }
        let url = request.url.clone();
        let limit = Duration::from_millis(request.timeout_ms.into());
        timeout(limit, send(&self.plugin, request)).await.unwrap_or_else(|_| {
            Err(Error::DeadlineExceeded(format!(
                "{url} did not answer within {} s",
                limit.as_secs_f32()
            )))
        })
    }

    async fn download(
        &mut self,
        url: String,
        path: String,
        checksum: Checksum,
    ) -> Result<(), Error> {
        let download = Download::new(self.plugin.clone(), &url, path, checksum)?;
        let lock = self.plugin.fetched.lock_of(&download.path);
        let _one_at_a_time = lock.lock().await;
        let progress = self.progress.clone();
        // An earlier call, or the one waited for, may have fetched it.
        if fetched::is_there(&download.plugin, &download.path, &download.checksum, progress.clone())
            .await?
        {
            return Ok(());
        }
        if let Some(script) =
            self.plugin.services.script.as_ref().filter(|script| script.plays_http())
        {
            self.plugin.grants.http(&download.url)?;
            return download.take(script.body(&url).await?).await;
        }
        download.run(progress).await
    }
}

async fn send(plugin: &PluginContext, request: Request) -> Result<Answer, Error> {
    if request.headers.len() > HTTP_HEADERS {
        return Err(Error::InvalidArgument(format!(
            "a request has at most {HTTP_HEADERS} headers, this one {}",
            request.headers.len()
        )));
    }
    let mut headers = HeaderMap::new();
    for (name, value) in &request.headers {
        let wrong = || Error::InvalidArgument(format!("`{name}` is no valid HTTP header"));
        let name = HeaderName::try_from(name.as_str()).map_err(|_| wrong())?;
        headers.append(name, HeaderValue::try_from(value.as_str()).map_err(|_| wrong())?);
    }
    let method = match request.method {
        Method::Get => reqwest::Method::GET,
        Method::Head => reqwest::Method::HEAD,
        Method::Post => reqwest::Method::POST,
        Method::Put => reqwest::Method::PUT,
        Method::Delete => reqwest::Method::DELETE,
    };
    let response = exchange(plugin, method, parse(&request.url)?, headers, request.body).await?;
    let status = response.status().as_u16();
    let headers = response
        .headers()
        .iter()
        .map(|(name, value)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        })
        .collect();
    let mut body = Vec::new();
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| unavailable(&request.url, &error))?;
        if body.len() + chunk.len() > HTTP_BODY_BYTES {
            return Err(Error::ResourceExhausted(format!(
                "{} answers more than {HTTP_BODY_BYTES} bytes",
                request.url
            )));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { status, headers, body })
}

/// One request, with its redirects: a GET or HEAD follows them as far as the grants go.
async fn exchange(
    plugin: &PluginContext,
    method: reqwest::Method,
    mut url: Url,
    headers: HeaderMap,
    body: Vec<u8>,
) -> Result<Response, Error> {
    let repeatable = matches!(method, reqwest::Method::GET | reqwest::Method::HEAD);
    let first = url.origin();
    // Refused before anything is set up.
    plugin.grants.http(&url)?;
    let client = plugin.services.http.get().await?;
    for _ in 0..=HTTP_REDIRECTS {
        plugin.grants.http(&url)?;
        let mut request = client.request(method.clone(), url.clone());
        // What is meant for one server, such as a token, is not handed on to another.
        if url.origin() == first {
            request = request.headers(headers.clone());
        } else if let Some(range) = headers.get(RANGE) {
            request = request.header(RANGE, range);
        }
        if !body.is_empty() {
            request = request.body(body.clone());
        }
        let response = request.send().await.map_err(|error| unavailable(url.as_str(), &error))?;
        let target = response.headers().get(LOCATION).and_then(|target| target.to_str().ok());
        match target {
            Some(target) if response.status().is_redirection() && repeatable => {
                url = url.join(target).map_err(|error| {
                    Error::Unavailable(format!(
                        "{url} redirects to `{target}`, which is no URL: {error}"
                    ))
                })?;
            }
            _ => return Ok(response),
        }
    }
    Err(Error::Unavailable(format!("{url} was reached by more than {HTTP_REDIRECTS} redirects")))
}

/// A file being fetched. It grows under a name that carries its checksum, so that what is there of it can only be a
/// beginning of the same content.
struct Download {
    plugin: Arc<PluginContext>,
    url: Url,
    path: PathBuf,
    partial: PathBuf,
    checksum: Checksum,
}

impl Download {
    fn new(
        plugin: Arc<PluginContext>,
        url: &str,
        path: String,
        checksum: Checksum,
    ) -> Result<Self, Error> {
        let hex = fetched::hex_of(&checksum);
        let length = if matches!(checksum, Checksum::Sha256(_)) { 64 } else { 128 };
        if hex.len() != length || !hex.bytes().all(|c| c.is_ascii_hexdigit()) {
            return Err(Error::InvalidArgument(format!(
                "the checksum of {url} has to be {length} hexadecimal digits"
            )));
        }
        let path = PathBuf::from(relative(&path)?);
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| Error::InvalidArgument(format!("{} names no file", path.display())))?;
        let partial =
            path.with_file_name(format!("{name}.{}.part", &hex[..16].to_ascii_lowercase()));
        Ok(Self { plugin, url: parse(url)?, path, partial, checksum })
    }

    async fn run(&self, progress: Option<ProgressSink>) -> Result<(), Error> {
        let mut file = self.open_partial().await?;
        let mut have = file.metadata().await.map_err(|error| self.failed(&error))?.len();
        let mut headers = HeaderMap::new();
        if have > 0 {
            let range = HeaderValue::try_from(format!("bytes={have}-"))
                .map_err(|error| Error::Internal(error.to_string()))?;
            headers.insert(RANGE, range);
        }
        let response =
            exchange(&self.plugin, reqwest::Method::GET, self.url.clone(), headers, Vec::new())
                .await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(&response, have) => {}
            // Nothing is left to fetch: the checksum will tell whether it is whole.
            StatusCode::RANGE_NOT_SATISFIABLE if have > 0 => {
                return self.finish(file, progress).await;
            }
            status if status.is_success() => {
                // The server began anew, so the file has to as well.
                file.set_len(0).await.map_err(|error| self.failed(&error))?;
                have = 0;
            }
            status => {
                let text = format!("{} answers {status}", self.url);
                return Err(match status {
                    StatusCode::NOT_FOUND | StatusCode::GONE => Error::NotFound(text),
                    _ => Error::Unavailable(text),
                });
            }
        }
        let total = response.content_length().map(|rest| rest.saturating_add(have));
        let directory = &self.plugin.directory.handle;
        let rest = total.unwrap_or(have).saturating_sub(have);
        ensure_room(directory, rest).map_err(|error| self.failed(&error))?;
        let mut checked_at = have;
        let mut chunks = response.bytes_stream();
        let mut reported = None;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| unavailable(self.url.as_str(), &error))?;
            file.write_all(&chunk).await.map_err(|error| self.failed(&error))?;
            have += chunk.len() as u64;
            // A server need not keep to the length that it announced.
            if have - checked_at > ROOM_CHECKED_EVERY_BYTES {
                ensure_room(directory, 0).map_err(|error| self.failed(&error))?;
                checked_at = have;
            }
            if have > DOWNLOAD_BYTES {
                return Err(Error::ResourceExhausted(format!("{} does not end", self.url)));
            }
            let percent = total.map(|total| (have * 100 / total.max(1)).min(100) as u8);
            if let Some(progress) = &progress
                && percent != reported
            {
                progress(Progress { stage: "downloading image".into(), percent });
                reported = percent;
            }
        }
        self.finish(file, progress).await
    }

    /// Keeps what a script answers in the server's place.
    async fn take(&self, body: Vec<u8>) -> Result<(), Error> {
        let mut file = self.open_partial().await?;
        file.set_len(0).await.map_err(|error| self.failed(&error))?;
        file.write_all(&body).await.map_err(|error| self.failed(&error))?;
        self.finish(file, None).await
    }

    async fn open_partial(&self) -> Result<tokio::fs::File, Error> {
        use cap_std::fs::OpenOptionsExt;
        let (directory, partial) =
            (Arc::clone(&self.plugin.directory.handle), self.partial.clone());
        let file = blocking(move || {
            let failed = |error: std::io::Error| io_error("write", &partial, &error);
            if let Some(parent) = partial.parent() {
                directory.create_dir_all(parent).map_err(failed)?;
            }
            let mut options = cap_std::fs::OpenOptions::new();
            options.create(true).append(true).read(true).mode(0o600);
            directory.open_with(&partial, &options).map_err(failed)
        })
        .await?;
        Ok(tokio::fs::File::from_std(file.into_std()))
    }

    /// Checks what was fetched, and gives it its name.
    async fn finish(
        &self,
        mut file: tokio::fs::File,
        progress: Option<ProgressSink>,
    ) -> Result<(), Error> {
        fetched::report_reading(progress.as_ref());
        file.flush().await.map_err(|error| self.failed(&error))?;
        let mut file = file.into_std().await;
        let plugin = Arc::clone(&self.plugin);
        let (path, partial, url) = (self.path.clone(), self.partial.clone(), self.url.clone());
        let checksum = self.checksum.clone();
        blocking(move || {
            let failed = |error: std::io::Error| io_error("write", &partial, &error);
            file.sync_all().map_err(failed)?;
            file.rewind().map_err(failed)?;
            let directory = &plugin.directory.handle;
            let found = fetched::checksum_of(&checksum, &mut file).map_err(failed)?;
            if !fetched::same(&found, &checksum) {
                // Going on from here would never come to another end.
                directory.remove_file(&partial).map_err(failed)?;
                return Err(Error::Internal(format!(
                    "{url} is not what was expected: its checksum is {}, the catalog says {}",
                    fetched::hex_of(&found),
                    fetched::hex_of(&checksum)
                )));
            }
            directory.rename(&partial, directory, &path).map_err(failed)?;
            plugin.fetched.remember(directory, &path, checksum);
            Ok(())
        })
        .await
    }

    fn failed(&self, error: &std::io::Error) -> Error {
        io_error("write", &self.partial, error)
    }
}

/// Does the server go on exactly where we stopped?
fn starts_at(response: &Response, have: u64) -> bool {
    response
        .headers()
        .get(CONTENT_RANGE)
        .and_then(|range| range.to_str().ok())
        .and_then(|range| range.strip_prefix("bytes ")?.split_once('-'))
        .is_some_and(|(start, _)| start.trim().parse() == Ok(have))
}

fn parse(url: &str) -> Result<Url, Error> {
    Url::parse(url).map_err(|error| Error::InvalidArgument(format!("`{url}` is no URL: {error}")))
}

/// With the causes, which is where reqwest says what happened.
fn unavailable(url: &str, error: &reqwest::Error) -> Error {
    let mut text = format!("{url} cannot be reached");
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    if error.is_timeout() { Error::DeadlineExceeded(text) } else { Error::Unavailable(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_machine_and_its_network_are_not_public() {
        for inside in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "::1",
            "fe80::1",
            "fd00::1",
            "::ffff:127.0.0.1",
            "::",
            "64:ff9b::10.0.0.1",
            "64:ff9b::169.254.169.254",
            "2002:7f00:1::",
        ] {
            assert!(!is_public(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["1.1.1.1", "100.128.0.1", "2606:4700::1111", "64:ff9b::1.1.1.1"] {
            assert!(is_public(outside.parse().unwrap()), "{outside}");
        }
    }
}
