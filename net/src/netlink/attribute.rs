//! The attributes of an answer: a list of (type, bytes), read without knowing every type.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The kernel says that its error carries attributes.
const ACK_ATTRIBUTES: u16 = 0x200;
/// The kernel left the request's body out of its error.
const ACK_CAPPED: u16 = 0x100;
/// The attribute that holds the kernel's explanation.
const EXPLANATION: u16 = 1;
const TYPE_MASK: u16 = 0x3fff;

/// Reads a number in the machine's byte order; 0 where there is none.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    part(bytes, at).map_or(0, u16::from_ne_bytes)
}

/// Reads a number in the machine's byte order; 0 where there is none.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    part(bytes, at).map_or(0, u32::from_ne_bytes)
}

/// Reads a number in the machine's byte order; 0 where there is none.
pub(crate) fn i32_at(bytes: &[u8], at: usize) -> i32 {
    part(bytes, at).map_or(0, i32::from_ne_bytes)
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// The attributes in `bytes`, in order; stops at the first that is malformed.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(part(bytes, 0).map(u16::from_ne_bytes)?);
        let value = bytes.get(4..length)?;
        let kind = u16_at(bytes, 2) & TYPE_MASK;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of a type.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(found, _)| *found == kind)
        .map(|(_, value)| value)
}

/// A string attribute, without its final zero.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// An IPv4 or IPv6 address, told apart by its length.
pub(crate) fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => part::<4>(value, 0).map(|bytes| Ipv4Addr::from(bytes).into()),
        16 => part::<16>(value, 0).map(|bytes| Ipv6Addr::from(bytes).into()),
        _ => None,
    }
}

/// The kernel's words in an error message (the payload after the netlink header).
pub(crate) fn explanation(payload: &[u8], flags: u16) -> Option<String> {
    if flags & ACK_ATTRIBUTES == 0 {
        return None;
    }
    // Error number, then the request's header, then its body unless capped, then the attributes.
    let request = if flags & ACK_CAPPED != 0 {
        16
    } else {
        u32_at(payload, 4) as usize
    };
    let value = find(payload.get(4 + request.next_multiple_of(4)..)?, EXPLANATION)?;
    Some(text(value)).filter(|words| !words.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn attributes_are_read_in_order_and_padding_is_skipped() {
        let bytes = [attribute(3, b"eth0\0"), attribute(0x8000 | 18, &[1, 2, 3, 4])].concat();
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(3, &b"eth0\0"[..]), (18, &[1, 2, 3, 4][..])]);
        assert_eq!(find(&bytes, 3).map(text), Some("eth0".to_owned()));
    }

    #[test]
    fn malformed_attributes_end_the_list() {
        for bytes in [
            &[][..],
            &[1],
            &[2, 0, 1, 0],
            &[3, 0, 1, 0],
            &[200, 0, 1, 0, 9],
            &[0, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
    }

    #[test]
    fn the_kernels_words_are_found() {
        let mut payload = [(-17_i32).to_ne_bytes().to_vec(), vec![0; 16]].concat();
        payload.extend(attribute(EXPLANATION, b"no\0"));
        assert_eq!(
            explanation(&payload, ACK_ATTRIBUTES | ACK_CAPPED),
            Some("no".to_owned())
        );
        assert_eq!(explanation(&payload, 0), None);
    }
}
