//! The server over real sockets, with an upstream server in the test.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType, rdata};
use reconcilers::ports::{DnsWhitelist, Records, ServiceRecord, Zone};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::{Dns, DnsConfig};

const PORT: u16 = 5300;

/// A loopback address of this test alone: by process and by counter, so that runs can go side by side.
fn own_address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let last = NEXT.fetch_add(1, Ordering::Relaxed);
    (Ipv4Addr::new(127, high | 0x80, low, last), PORT).into()
}

fn name(text: &str) -> Name {
    Name::from_str(text).expect("a name")
}

fn address_record(owner: &str, last: u8) -> Record {
    Record::from_rdata(name(owner), 60, RData::A(rdata::A::new(192, 0, 2, last)))
}

fn alias_record(owner: &str, target: &str) -> Record {
    Record::from_rdata(name(owner), 60, RData::CNAME(rdata::CNAME(name(target))))
}

/// A name server that answers A and PTR questions from a table, and NXDOMAIN otherwise.
struct Upstream {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Upstream {
    async fn start(records: Vec<(&str, Vec<Record>)>) -> Self {
        let table: HashMap<String, Vec<Record>> = records
            .into_iter()
            .map(|(name, records)| (name.to_owned(), records))
            .collect();
        let socket = UdpSocket::bind(own_address()).await.expect("upstream socket");
        let address = socket.local_addr().expect("upstream address");
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        let task = tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
                counter.fetch_add(1, Ordering::Relaxed);
                let request = Message::from_vec(&buffer[..length]).expect("a query");
                let query = request.queries[0].clone();
                let mut response = Message::response(request.metadata.id, OpCode::Query);
                response.add_query(query.clone());
                match table.get(&query.name().to_string()) {
                    Some(records) => {
                        response.add_answers(records.clone());
                    }
                    None => {
                        response.metadata.response_code = ResponseCode::NXDomain;
                        let soa = rdata::SOA::new(name("ns.test."), name("mail.test."), 1, 1, 1, 1, 60);
                        response.add_authority(Record::from_rdata(name("test."), 60, RData::SOA(soa)));
                    }
                }
                let bytes = response.to_vec().expect("an encodable response");
                socket.send_to(&bytes, client).await.expect("send");
            }
        });
        Self { address, asked, task }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A server with the zone of one pod, and no whitelist.
async fn server(upstreams: Vec<SocketAddr>) -> (Dns, SocketAddr) {
    let (dns, address) = ignorant(upstreams).await;
    dns.sink().set_whitelist(DnsWhitelist::default());
    dns.sink().set_zone(zone(1));
    (dns, address)
}

/// A server that was told nothing yet.
async fn ignorant(upstreams: Vec<SocketAddr>) -> (Dns, SocketAddr) {
    let dns = Dns::start(DnsConfig {
        upstreams,
        ttl_seconds: 5,
    })
    .expect("start");
    let address = own_address();
    dns.listen(vec![address]).await.expect("listen");
    (dns, address)
}

fn whitelist(hosts: &[&str]) -> DnsWhitelist {
    DnsWhitelist {
        enabled: true,
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
    }
}

fn zone(pods: u8) -> Zone {
    let address = |last| IpAddr::from([10, 244, 0, last]);
    let mut zone = Zone {
        domain: "cluster.local".into(),
        ..Zone::default()
    };
    let mut put = |name: &str, records| zone.names.insert(name.to_owned(), records);
    put(
        "web.default.svc.cluster.local",
        Records {
            addresses: (1..=pods).map(address).collect(),
            ..Records::default()
        },
    );
    put(
        "_http._tcp.web.default.svc.cluster.local",
        Records {
            services: vec![ServiceRecord {
                port: 8080,
                target: "web.default.svc.cluster.local".into(),
            }],
            ..Records::default()
        },
    );
    put(
        "outer.default.svc.cluster.local",
        Records {
            alias: Some("www.example.test".into()),
            ..Records::default()
        },
    );
    zone.reverse
        .insert(address(1), vec!["web.default.svc.cluster.local".into()]);
    zone
}

fn question(text: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), kind));
    message
}

async fn ask_message(server: SocketAddr, message: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("client socket");
    socket
        .send_to(&message.to_vec().expect("encode"), server)
        .await
        .expect("send");
    let mut buffer = [0; 65535];
    let received = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await;
    let length = received.expect("an answer within 5 s").expect("receive");
    Message::from_vec(&buffer[..length]).expect("decode")
}

async fn ask(server: SocketAddr, text: &str, kind: RecordType) -> Message {
    ask_message(server, &question(text, kind)).await
}

async fn ask_tcp(server: SocketAddr, message: &Message) -> Message {
    let mut stream = TcpStream::connect(server).await.expect("connect");
    let bytes = message.to_vec().expect("encode");
    stream.write_u16(bytes.len() as u16).await.expect("send");
    stream.write_all(&bytes).await.expect("send");
    let length = stream.read_u16().await.expect("receive");
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await.expect("receive");
    Message::from_vec(&buffer).expect("decode")
}

#[tokio::test]
async fn own_names_are_answered_over_udp_and_tcp() {
    let (dns, address) = server(Vec::new()).await;
    dns.sink().set_zone(zone(3));
    let query = question("Web.Default.svc.cluster.local.", RecordType::A);
    for answer in [ask_message(address, &query).await, ask_tcp(address, &query).await] {
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
        assert_eq!(answer.answers.len(), 3);
        assert!(answer.answers.iter().all(|record| record.ttl == 5));
    }
    let service = ask(
        address,
        "_http._tcp.web.default.svc.cluster.local.",
        RecordType::SRV,
    )
    .await;
    assert_eq!((service.answers.len(), service.additionals.len()), (1, 3));
    let reverse = ask(address, "1.0.244.10.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(reverse.answers.len(), 1);
}

#[tokio::test]
async fn what_is_not_known_yet_is_neither_denied_nor_forwarded() {
    let upstream = Upstream::start(vec![(
        "www.example.test.",
        vec![address_record("www.example.test.", 1)],
    )])
    .await;
    let (dns, address) = ignorant(vec![upstream.address]).await;
    let code = async |name: &str| ask(address, name, RecordType::A).await.metadata.response_code;
    let (own, other) = ("web.default.svc.cluster.local.", "www.example.test.");
    for name in [own, other] {
        assert_eq!(code(name).await, ResponseCode::ServFail, "{name}");
    }
    dns.sink().set_zone(zone(1));
    assert_eq!(code(own).await, ResponseCode::NoError);
    assert_eq!(
        code(other).await,
        ResponseCode::ServFail,
        "the whitelist is not known"
    );
    assert_eq!(upstream.asked.load(Ordering::Relaxed), 0);
    dns.sink().set_whitelist(DnsWhitelist::default());
    assert_eq!(code(other).await, ResponseCode::NoError);
}

#[tokio::test]
async fn no_such_name_and_no_such_data_are_told_apart() {
    let (dns, address) = server(Vec::new()).await;
    dns.sink().set_zone(zone(1));
    for (name, kind, code) in [
        (
            "web.default.svc.cluster.local.",
            RecordType::AAAA,
            ResponseCode::NoError,
        ),
        ("svc.cluster.local.", RecordType::A, ResponseCode::NoError),
        (
            "none.default.svc.cluster.local.",
            RecordType::A,
            ResponseCode::NXDomain,
        ),
    ] {
        let answer = ask(address, name, kind).await;
        assert_eq!(answer.metadata.response_code, code, "{name}");
        assert!(answer.answers.is_empty());
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA, "{name}");
        assert_eq!(answer.authorities[0].ttl, 5);
    }
    let any = ask(address, "web.default.svc.cluster.local.", RecordType::ANY).await;
    assert_eq!(any.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn an_answer_too_large_is_cut_and_whole_over_tcp() {
    let (dns, address) = server(Vec::new()).await;
    dns.sink().set_zone(zone(60));
    let mut query = question("web.default.svc.cluster.local.", RecordType::A);
    let plain = ask_message(address, &query).await;
    assert!(plain.metadata.truncation, "60 addresses do not fit 512 bytes");
    assert!(plain.answers.len() < 60);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    query.edns = Some(edns);
    let extended = ask_message(address, &query).await;
    assert!(!extended.metadata.truncation, "60 addresses fit 1232 bytes");
    assert_eq!(extended.answers.len(), 60);
    assert!(extended.edns.is_some());
    let whole = ask_tcp(
        address,
        &question("web.default.svc.cluster.local.", RecordType::A),
    )
    .await;
    assert_eq!(whole.answers.len(), 60);
}

#[tokio::test]
async fn other_names_are_forwarded_and_cached() {
    let upstream = Upstream::start(vec![
        ("www.example.test.", vec![address_record("www.example.test.", 1)]),
        (
            "9.0.0.10.in-addr.arpa.",
            vec![Record::from_rdata(
                name("9.0.0.10.in-addr.arpa."),
                60,
                RData::PTR(rdata::PTR(name("printer.example.test."))),
            )],
        ),
    ])
    .await;
    let (dns, address) = server(vec![upstream.address]).await;
    dns.sink().set_zone(zone(1));
    for _ in 0..3 {
        let answer = ask(address, "www.example.test.", RecordType::A).await;
        assert_eq!(answer.answers.len(), 1);
        assert!(!answer.metadata.authoritative);
    }
    assert_eq!(
        upstream.asked.load(Ordering::Relaxed),
        1,
        "asked once, then cached"
    );
    let missing = ask(address, "missing.example.test.", RecordType::A).await;
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(missing.authorities.len(), 1);
    let reverse = ask(address, "9.0.0.10.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(reverse.answers.len(), 1, "the address of another machine");
    let ours = ask(address, "none.cluster.local.", RecordType::A).await;
    assert_eq!(ours.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(
        upstream.asked.load(Ordering::Relaxed),
        3,
        "our names are never forwarded"
    );
}

#[tokio::test]
async fn the_whitelist_covers_names_aliases_and_cached_answers() {
    let upstream = Upstream::start(vec![
        ("www.example.test.", vec![address_record("www.example.test.", 1)]),
        (
            "good.example.test.",
            vec![
                alias_record("good.example.test.", "www.example.test."),
                address_record("www.example.test.", 1),
            ],
        ),
        (
            "bad.example.test.",
            vec![
                alias_record("bad.example.test.", "tracker.other.test."),
                address_record("tracker.other.test.", 2),
            ],
        ),
        ("other.test.", vec![address_record("other.test.", 3)]),
    ])
    .await;
    let (dns, address) = server(vec![upstream.address]).await;
    dns.sink().set_zone(zone(1));
    let check = async |name: &str, code| {
        let answer = ask(address, name, RecordType::A).await;
        assert_eq!(answer.metadata.response_code, code, "{name}");
        assert_eq!(answer.answers.is_empty(), code == ResponseCode::Refused, "{name}");
    };
    check("bad.example.test.", ResponseCode::NoError).await;
    check("other.test.", ResponseCode::NoError).await;
    dns.sink().set_whitelist(whitelist(&["example.test"]));
    check("www.example.test.", ResponseCode::NoError).await;
    check("good.example.test.", ResponseCode::NoError).await;
    check("bad.example.test.", ResponseCode::Refused).await;
    check("other.test.", ResponseCode::Refused).await;
    check("outer.default.svc.cluster.local.", ResponseCode::NoError).await;
    check("web.default.svc.cluster.local.", ResponseCode::NoError).await;
    dns.sink().set_whitelist(whitelist(&["unrelated.test"]));
    check("outer.default.svc.cluster.local.", ResponseCode::Refused).await;
    dns.sink().set_whitelist(DnsWhitelist::default());
    check("other.test.", ResponseCode::NoError).await;
}

#[tokio::test]
async fn an_external_name_is_an_alias_and_its_addresses() {
    let upstream = Upstream::start(vec![(
        "www.example.test.",
        vec![address_record("www.example.test.", 7)],
    )])
    .await;
    let (dns, address) = server(vec![upstream.address]).await;
    dns.sink().set_zone(zone(1));
    let answer = ask(address, "outer.default.svc.cluster.local.", RecordType::A).await;
    let kinds: Vec<RecordType> = answer.answers.iter().map(Record::record_type).collect();
    assert_eq!(kinds, [RecordType::CNAME, RecordType::A]);
}

#[tokio::test]
async fn a_dead_upstream_is_a_failure_within_seconds() {
    // Bound and never read: queries vanish, as with an unreachable server.
    let silent = UdpSocket::bind(own_address()).await.expect("silent socket");
    let (_dns, address) = server(vec![silent.local_addr().expect("address")]).await;
    let begin = Instant::now();
    let answer = ask(address, "www.example.test.", RecordType::A).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn one_of_two_upstreams_may_be_dead() {
    let silent = UdpSocket::bind(own_address()).await.expect("silent socket");
    let upstream = Upstream::start(vec![(
        "www.example.test.",
        vec![address_record("www.example.test.", 7)],
    )])
    .await;
    let (_dns, address) = server(vec![silent.local_addr().expect("address"), upstream.address]).await;
    let answer = ask(address, "www.example.test.", RecordType::A).await;
    assert_eq!(answer.answers.len(), 1);
}

#[tokio::test]
async fn listeners_come_and_go_also_on_addresses_that_are_not_there() {
    let (dns, first) = server(Vec::new()).await;
    dns.sink().set_zone(zone(1));
    let second = own_address();
    // TEST-NET-3: no machine has it.
    let absent: SocketAddr = "203.0.113.53:5300".parse().expect("an address");
    dns.listen(vec![second, absent])
        .await
        .expect("an absent address can be listened on");
    assert_eq!(
        ask(second, "web.default.svc.cluster.local.", RecordType::A)
            .await
            .answers
            .len(),
        1
    );
    let name_server = ask(second, "ns.dns.cluster.local.", RecordType::A).await;
    assert_eq!(
        name_server.answers[0].data.ip_addr(),
        Some(absent.ip()),
        "loopback is nobody's name server"
    );
    let again = UdpSocket::bind(first).await;
    assert!(again.is_ok(), "the first address is free again: {again:?}");
    drop(again);
    dns.listen(vec![first])
        .await
        .expect("and can be listened on again");
    assert_eq!(
        ask(first, "web.default.svc.cluster.local.", RecordType::A)
            .await
            .answers
            .len(),
        1
    );
    dns.stop().await;
    assert!(TcpStream::connect(first).await.is_err());
}

#[tokio::test]
async fn an_address_that_another_program_lets_go_is_served_after_all() {
    let (dns, first) = server(Vec::new()).await;
    let taken = own_address();
    let other = UdpSocket::bind(taken).await.expect("the other program");
    let listening = dns.listen_until_bound(vec![first, taken]);
    // The first try is over when it waits for the first time.
    tokio::join!(listening, async { drop(other) });
    let answer = ask(taken, "web.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(answer.answers.len(), 1);
}

#[tokio::test]
async fn a_port_in_use_is_named_and_the_rest_is_served() {
    let (dns, address) = server(Vec::new()).await;
    let taken = own_address();
    let _other = UdpSocket::bind(taken).await.expect("the other program");
    let error = dns
        .listen(vec![address, taken])
        .await
        .expect_err("the port is taken");
    let text = error.to_string();
    assert!(
        text.contains(&taken.to_string()) && text.contains("--dns-port"),
        "{text}"
    );
    assert_eq!(error.failures.len(), 1);
    dns.sink().set_zone(zone(1));
    assert_eq!(
        ask(address, "web.default.svc.cluster.local.", RecordType::A)
            .await
            .answers
            .len(),
        1
    );
}

#[tokio::test]
async fn malformed_and_unusual_queries_are_answered_or_dropped_not_fatal() {
    let (dns, address) = server(Vec::new()).await;
    dns.sink().set_zone(zone(1));
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("client socket");
    for junk in [&b""[..], &[0xff; 11], &[0xff; 600]] {
        socket.send_to(junk, address).await.expect("send");
    }
    let mut response = question("web.default.svc.cluster.local.", RecordType::A);
    response.metadata.message_type = MessageType::Response;
    socket
        .send_to(&response.to_vec().expect("encode"), address)
        .await
        .expect("send");

    let mut update = question("web.default.svc.cluster.local.", RecordType::A);
    update.metadata.op_code = OpCode::Notify;
    assert_eq!(
        ask_message(address, &update).await.metadata.response_code,
        ResponseCode::NotImp
    );
    let mut future = question("web.default.svc.cluster.local.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    future.edns = Some(edns);
    // 16 is BADVERS in an answer without a signature; hickory's decoder calls it BADSIG.
    assert_eq!(
        u16::from(ask_message(address, &future).await.metadata.response_code),
        16
    );
    assert_eq!(
        ask(address, "web.default.svc.cluster.local.", RecordType::A)
            .await
            .answers
            .len(),
        1
    );
}

#[tokio::test]
async fn one_connection_takes_several_questions_and_idle_ones_do_not_keep_others_out() {
    let (dns, address) = server(Vec::new()).await;
    dns.sink().set_zone(zone(1));
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(TcpStream::connect(address).await.expect("connect"));
    }
    // More than the limit are open; the idle ones are cut off after 5 s, and then this one is served.
    let query = question("web.default.svc.cluster.local.", RecordType::A);
    let answered = tokio::time::timeout(Duration::from_secs(15), ask_tcp(address, &query)).await;
    assert_eq!(answered.expect("an answer within 15 s").answers.len(), 1);
    assert_eq!(
        ask_message(address, &query).await.answers.len(),
        1,
        "UDP is served all the while"
    );
    drop(idle);

    let mut stream = TcpStream::connect(address).await.expect("connect");
    for _ in 0..3 {
        let bytes = query.to_vec().expect("encode");
        stream.write_u16(bytes.len() as u16).await.expect("send");
        stream.write_all(&bytes).await.expect("send");
        let length = stream.read_u16().await.expect("receive");
        let mut buffer = vec![0; usize::from(length)];
        stream.read_exact(&mut buffer).await.expect("receive");
        assert_eq!(Message::from_vec(&buffer).expect("decode").answers.len(), 1);
    }
}

#[tokio::test]
async fn dig_understands_the_answers() {
    let (dns, address) = server(Vec::new()).await;
    dns.sink().set_zone(zone(1));
    let run = async |arguments: &[&str]| {
        let output = tokio::process::Command::new("dig")
            .args([
                &format!("@{}", address.ip()),
                "-p",
                &PORT.to_string(),
                "+time=2",
                "+tries=1",
            ])
            .args(arguments)
            .output()
            .await;
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let Ok(short) = run(&["+short", "web.default.svc.cluster.local"]).await else {
        eprintln!("skipped: dig (package dnsutils) is not installed");
        return;
    };
    assert_eq!(short.trim(), "10.244.0.1");
    let reverse = run(&["+short", "-x", "10.244.0.1"]).await.expect("dig");
    assert_eq!(reverse.trim(), "web.default.svc.cluster.local.");
    let missing = run(&["+tcp", "none.cluster.local"]).await.expect("dig");
    assert!(missing.contains("status: NXDOMAIN"), "{missing}");
}
