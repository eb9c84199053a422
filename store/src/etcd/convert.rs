//! Between our words and etcd's.

use std::sync::Arc;

use super::Range;
use super::failure::garbled;
use super::protocol::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use super::protocol::etcdserverpb::request_op::Request;
use super::protocol::etcdserverpb::response_op::Response;
use super::protocol::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader, ResponseOp, TxnRequest,
};
use super::protocol::mvccpb::KeyValue;
use crate::{Entry, Error, Prefix, Revision, Write};

pub(super) fn to_wire(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

pub(super) fn from_wire(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or_default())
}

pub(super) fn revision(header: Option<ResponseHeader>) -> Revision {
    from_wire(header.unwrap_or_default().revision)
}

pub(super) fn entry(kv: KeyValue) -> Result<Entry, Error> {
    let key = std::str::from_utf8(&kv.key).map_err(|_| garbled("a key is not UTF-8"))?;
    Ok(Entry {
        key: Arc::from(key),
        create_revision: from_wire(kv.create_revision),
        mod_revision: from_wire(kv.mod_revision),
        value: kv.value,
    })
}

/// The keys of a prefix, behind the key `after`.
pub(super) fn range(prefix: &Prefix, after: Option<&str>) -> Range {
    let start = match after {
        // The least key that is greater.
        Some(after) if after >= prefix.start() => [after.as_bytes(), b"\0"].concat(),
        _ => prefix.start().as_bytes().to_vec(),
    };
    (start, prefix.end().into_bytes())
}

/// The change under its condition; what is there instead, when that does not hold.
pub(super) fn transaction(write: Write) -> TxnRequest {
    let key = bytes::Bytes::copy_from_slice(write.key().as_bytes());
    let compare = |target: CompareTarget, result: CompareResult, union: TargetUnion| Compare {
        result: result.into(),
        target: target.into(),
        key: key.clone(),
        target_union: Some(union),
    };
    let at = |revision| {
        compare(
            CompareTarget::Mod,
            CompareResult::Equal,
            TargetUnion::ModRevision(to_wire(revision)),
        )
    };
    let put = |value| {
        Request::RequestPut(PutRequest {
            key: key.clone(),
            value,
        })
    };
    let delete = Request::RequestDeleteRange(DeleteRangeRequest { key: key.clone() });
    let (condition, change) = match write {
        Write::Create { value, .. } => {
            let absent = TargetUnion::CreateRevision(0);
            (compare(CompareTarget::Create, CompareResult::Equal, absent), put(value))
        }
        Write::Update { value, expected, .. } => (at(expected), put(value)),
        Write::Delete {
            expected: Some(expected),
            ..
        } => (at(expected), delete),
        Write::Delete { expected: None, .. } => {
            let present = TargetUnion::CreateRevision(0);
            (compare(CompareTarget::Create, CompareResult::Greater, present), delete)
        }
    };
    let look = Request::RequestRange(RangeRequest {
        key: key.clone(),
        ..RangeRequest::default()
    });
    let operation = |request| RequestOp { request: Some(request) };
    TxnRequest {
        compare: vec![condition],
        success: vec![operation(change)],
        failure: vec![operation(look)],
    }
}

/// What a transaction found that did not apply.
pub(super) fn current(responses: Vec<ResponseOp>) -> Result<Option<Entry>, Error> {
    match responses.into_iter().next().and_then(|response| response.response) {
        Some(Response::ResponseRange(range)) => range.kvs.into_iter().next().map(entry).transpose(),
        _ => Err(garbled("a transaction answers something else than was asked")),
    }
}

#[cfg(test)]
mod tests {
    use super::range;
    use crate::Prefix;

    #[test]
    fn a_page_begins_behind_its_key() {
        let prefix = Prefix::new("/a");
        let end = b"/a0".to_vec();
        assert_eq!(range(&prefix, None), (b"/a/".to_vec(), end.clone()));
        assert_eq!(range(&prefix, Some("/a/x")), (b"/a/x\0".to_vec(), end.clone()));
        assert_eq!(range(&prefix, Some("/")), (b"/a/".to_vec(), end));
    }
}
