use super::*;

use http_body_util::{Empty, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Says `opening` and no more; how long the connection lasts, and what was answered.
async fn lasts(opening: &'static [u8]) -> (Duration, Vec<u8>) {
    let (mut client, server) = tokio::io::duplex(1 << 16);
    // Slower than the patience with openings: that is not what is waited for then.
    let answer = |_| async {
        tokio::time::sleep(HEADERS * 2).await;
        Response::new(Empty::<Bytes>::new())
    };
    let begin = Instant::now();
    tokio::spawn(async move { converse(server, answer, None, &Shutdown::new()).await });
    client.write_all(opening).await.unwrap();
    let mut heard = Vec::new();
    let ended = timeout(HEADERS * 100, client.read_to_end(&mut heard)).await;
    ended.expect("it is held for ever").unwrap();
    (begin.elapsed(), heard)
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_not_waited_for() {
    let pings = Duration::from_secs(30 + 15);
    for (opening, at_most) in [
        (&b""[..], HEADERS),
        (b"P", HEADERS),
        (&PREFACE[..PREFACE.len() - 1], HEADERS),
        (PREFACE, pings),
        (b"GET /", HEADERS),
        (b"PRI * HTTP/1.1\r\n", HEADERS),
        // A body that never comes, after the answer.
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n", HEADERS * 3),
    ] {
        let (lasted, _) = lasts(opening).await;
        let shown = String::from_utf8_lossy(opening);
        assert!(lasted <= at_most + Duration::from_secs(1), "{shown:?}: {lasted:?}");
    }
    // Shorter than HTTP/2's opening, and whole.
    let (lasted, heard) = lasts(b"GET / HTTP/1.0\r\n\r\n").await;
    assert!(heard.starts_with(b"HTTP/1.0 200 OK"), "{heard:?} after {lasted:?}");
}

/// A client of HTTP/2 that answers pings but asks nothing more than its first question.
async fn asks_once(length: Duration) -> Duration {
    let (client, server) = tokio::io::duplex(1 << 16);
    let answer = move |_| async move {
        let piece = futures::stream::once(async move {
            tokio::time::sleep(length).await;
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"end")))
        });
        Response::new(StreamBody::new(Box::pin(piece)))
    };
    let begin = Instant::now();
    tokio::spawn(async move { converse(server, answer, None, &Shutdown::new()).await });
    let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client)).await;
    let (mut sender, connection) = shaken.unwrap();
    let asked = async move {
        let response = sender.send_request(Request::new(Empty::<Bytes>::new())).await.unwrap();
        let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
        assert_eq!(body.to_bytes(), "end");
        // The sender is kept: nobody hangs up on this side.
        std::future::pending::<()>().await;
    };
    let ended = timeout(IDLE * 100, async {
        tokio::select! {
            ended = connection => ended,
            () = asked => unreachable!(),
        }
    });
    ended.await.expect("it is held for ever").ok();
    begin.elapsed()
}

#[tokio::test(start_paused = true)]
async fn who_asks_nothing_more_is_let_go_and_what_is_asked_is_answered() {
    for seconds in [0, 3 * IDLE.as_secs()] {
        let length = Duration::from_secs(seconds);
        let lasted = asks_once(length).await;
        assert!(
            lasted >= length + IDLE && lasted <= length + IDLE * 2,
            "{length:?}: {lasted:?}"
        );
    }
}

/// Room for one connection of each address.
fn room(yields: Yield) -> Arc<Room> {
    let bounds = Bounds { each: 1, all: 9 };
    Arc::new(Room::new("connections", bounds, yields))
}

#[tokio::test(start_paused = true)]
async fn who_loses_the_place_is_let_go() {
    let (room, from) = (room(Yield::Always), [10, 0, 0, 1].into());
    let (mut client, server) = tokio::io::duplex(1 << 16);
    let place = Room::enter(&room, from);
    let answer = |_| async { Response::new(Empty::<Bytes>::new()) };
    tokio::spawn(async move { converse(server, answer, place, &Shutdown::new()).await });
    let begin = Instant::now();
    let _newer = Room::enter(&room, from).unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

/// A client with a place whose connection is no longer HTTP's; what it says comes back.
async fn upgraded(place: Place) -> tokio::io::DuplexStream {
    let (mut client, server) = tokio::io::duplex(1 << 16);
    let answer = |request| async {
        tokio::spawn(async {
            let stream = hyper::upgrade::on(request).await.unwrap();
            let (mut reader, mut writer) = tokio::io::split(TokioIo::new(stream));
            tokio::io::copy(&mut reader, &mut writer).await.ok();
        });
        let switching = Response::builder().status(101).header("upgrade", "echo");
        let response = switching.header("connection", "upgrade");
        response.body(Empty::<Bytes>::new()).unwrap()
    };
    let conversation = tokio::spawn(async move { converse(server, answer, Some(place), &Shutdown::new()).await });
    let asked = b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    client.write_all(asked).await.unwrap();
    conversation.await.unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"\r\n\r\n") {
        heard.push(client.read_u8().await.unwrap());
    }
    client.write_all(b"hello").await.unwrap();
    let mut heard = [0; 5];
    client.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
    client
}

#[tokio::test]
async fn an_upgraded_stream_keeps_its_place_until_it_ends() {
    let (room, from) = (room(Yield::ToSmaller), [10, 0, 0, 1].into());
    let client = upgraded(Room::enter(&room, from).unwrap()).await;
    assert!(Room::enter(&room, from).is_none(), "it is counted");
    drop(client);
    let comes_free = async {
        while Room::enter(&room, from).is_none() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), comes_free).await.expect("it is held");
}

#[tokio::test]
async fn an_upgraded_stream_that_loses_its_place_ends() {
    let (room, from) = (room(Yield::Always), [10, 0, 0, 1].into());
    let mut client = upgraded(Room::enter(&room, from).unwrap()).await;
    let _newer = Room::enter(&room, from).unwrap();
    let ended = timeout(Duration::from_secs(20), client.read(&mut [0])).await;
    assert_eq!(ended.expect("it goes on").unwrap(), 0);
}

/// Clients of a door with room for one stranger of each address.
struct Scene {
    authority: skiff_pki::CertificateAuthority,
    to: std::net::SocketAddr,
    shutdown: Shutdown,
    served: tokio::task::JoinHandle<()>,
}

impl Scene {
    async fn new() -> Self {
        crate::install_crypto();
        let authority = skiff_pki::CertificateAuthority::generate("test").unwrap();
        let local: IpAddr = [127, 0, 0, 1].into();
        let identity = authority.issue(&skiff_pki::Request::server("s", &["s"], &[local]));
        let tls = skiff_pki::server_config(&identity.unwrap(), Some(authority.certificate_pem())).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind((local, 0)).await.unwrap();
        let to = listener.local_addr().unwrap();
        let door = Arc::new(Door::new(Bounds { each: 1, all: 9 }));
        let shutdown = Shutdown::new();
        let told = shutdown.clone();
        let served = tokio::spawn(async move {
            let connection = |stream, from| {
                let (door, acceptor, told) = (Arc::clone(&door), acceptor.clone(), told.clone());
                async move {
                    let Some((stream, place)) = door.enter(stream, from, acceptor, &told).await else {
                        return;
                    };
                    let answer = |_| async { Response::new(Empty::<Bytes>::new()) };
                    converse(stream, answer, place, &told).await;
                }
            };
            listen(listener, &told, HANDSHAKE, connection).await;
        });
        Self {
            authority,
            to,
            shutdown,
            served,
        }
    }

    async fn connect(&self, from: u8) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, from], 0).into()).unwrap();
        socket.connect(self.to).await.unwrap()
    }

    /// A connection from an address, with a certificate or without; `None` when it is closed before anything is answered.
    async fn asks(&self, from: u8, certified: bool) -> Option<tokio_rustls::client::TlsStream<TcpStream>> {
        let identity = certified.then(|| self.authority.issue(&skiff_pki::Request::client("c", &[])).unwrap());
        let config = skiff_pki::client_config(identity.as_ref(), self.authority.certificate_pem()).unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let name = "s".to_owned().try_into().unwrap();
        let mut stream = connector.connect(name, self.connect(from).await).await.ok()?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: s\r\n\r\n").await.ok()?;
        let mut heard = [0; 12];
        stream.read_exact(&mut heard).await.ok()?;
        assert_eq!(&heard, b"HTTP/1.1 200");
        Some(stream)
    }
}

#[tokio::test]
async fn strangers_of_one_address_keep_out_nobody_else() {
    let scene = Scene::new().await;
    let first = scene.asks(1, false).await.expect("there is room");
    assert!(scene.asks(1, false).await.is_none(), "an address has its bound");
    assert!(scene.asks(2, false).await.is_some(), "another has its own");
    assert!(scene.asks(1, true).await.is_some(), "who is known needs no room");
    drop(first);
    let again = async {
        while scene.asks(1, false).await.is_none() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), again)
        .await
        .expect("a place comes free");
}

#[tokio::test]
async fn handshakes_that_do_not_end_make_room() {
    let scene = Scene::new().await;
    let mut silent = scene.connect(1).await;
    assert!(scene.asks(1, true).await.is_some());
    let ended = timeout(HANDSHAKE / 2, silent.read(&mut [0])).await;
    assert!(ended.is_ok(), "the older handshake is given up");
}

#[tokio::test]
async fn the_shutdown_waits_for_no_handshake() {
    let scene = Scene::new().await;
    let (mut older, _silent) = (scene.connect(1).await, scene.connect(1).await);
    // The older one ends when the other has come in and is waited for.
    let ended = older.read(&mut [0]).await;
    assert!(ended.is_err() || ended.is_ok_and(|read| read == 0));
    scene.shutdown.cancel();
    let ended = timeout(HANDSHAKE / 2, scene.served).await;
    ended.expect("it waits for who says nothing").unwrap();
}
