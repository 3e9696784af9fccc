//! Who answers a query: the zone, the forwarder, or nobody. Turns an [`Answer`] into a message within the size that the
//! client can take (hickory sets TC when it does not fit).

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use hickory_proto::op::{Edns, Header, HeaderCounts, LowerQuery, MessageType, Metadata, OpCode};
use hickory_proto::rr::{DNSClass, RecordType};
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;

use super::forward::Forwarder;
use super::zone::{Answer, Code, Found, PreparedZone};

/// The largest UDP answer: fits one frame on every link, so it is never fragmented (DNS Flag Day 2020).
const MAX_UDP_PAYLOAD: u16 = 1232;

/// What all listeners of a server share.
pub(super) struct Authority {
    /// None until the first one arrives: what is ours is not known, so every question fails, and is asked again.
    pub(super) zone: ArcSwapOption<PreparedZone>,
    pub(super) forwarder: Forwarder,
}

impl Authority {
    /// Answers one question.
    async fn answer(&self, query: &LowerQuery) -> Answer {
        if query.query_class() != DNSClass::IN {
            return Answer::empty(Code::Refused);
        }
        match query.query_type() {
            // ANY serves reflection attacks and little else (RFC 8482); transfers are not offered.
            RecordType::ANY | RecordType::AXFR | RecordType::IXFR => return Answer::empty(Code::Refused),
            _ => {}
        }
        let zone = self.zone.load_full();
        let Some(found) = zone.map(|zone| zone.find(query.name(), query.query_type())) else {
            return Answer::empty(Code::Failed);
        };
        match found {
            Found::Answer(answer) => *answer,
            Found::Foreign => self.forwarder.resolve(query.name(), query.query_type()).await,
            Found::Alias { mut records, target } => {
                let mut answer = self.forwarder.resolve(&target, query.query_type()).await;
                if matches!(answer.code, Code::NoError | Code::NoName) {
                    records.append(&mut answer.records);
                    answer.records = records;
                }
                answer
            }
        }
    }

    async fn answer_request(&self, request: &Request) -> Answer {
        if request.metadata.op_code != OpCode::Query {
            return Answer::empty(Code::NotImplemented);
        }
        if request.version() > 0 {
            return Answer::empty(Code::BadVersion);
        }
        match request.queries.queries() {
            [query] => self.answer(query).await,
            _ => Answer::empty(Code::Malformed),
        }
    }
}

/// The handler that hickory calls, one for each listener.
#[derive(Clone)]
pub(super) struct Handler(pub(super) Arc<Authority>);

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response_handle: R,
    ) -> ResponseInfo {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        if request.metadata.message_type != MessageType::Query {
            return unsent(metadata);
        }
        let answer = self.0.answer_request(request).await;
        metadata.authoritative = answer.authoritative;
        metadata.recursion_available = true;
        metadata.response_code = answer.code.into();

        let edns = request.edns.as_ref().map(|_| {
            let mut edns = Edns::new();
            edns.set_max_payload(request.max_payload().min(MAX_UDP_PAYLOAD));
            edns.set_rcode_high(metadata.response_code.high());
            edns
        });
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let response = builder.build(
            metadata,
            &answer.records,
            &[],
            &answer.authority,
            &answer.additionals,
        );
        match response_handle.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(client = %request.src(), %error, "DNS answer not sent");
                unsent(metadata)
            }
        }
    }
}

/// What hickory wants to know of an answer that did not go out.
fn unsent(metadata: Metadata) -> ResponseInfo {
    ResponseInfo::from(Header {
        metadata,
        counts: HeaderCounts::default(),
    })
}
