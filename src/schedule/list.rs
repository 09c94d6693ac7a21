//! Doubly linked lists threaded through the nodes of a slab.
//!
//! Owns: the link arithmetic. Promises: every operation is O(1) and allocates nothing. Must not: be
//! asked to remove a node from a list it is not in: the node knows (each has a field that says so).
//! A node may be in several lists at once, one for each `L` it has [`Links`] for.
use slab::Slab;

use super::wheel::NIL;

#[derive(Clone, Copy, Debug)]
pub(super) struct Links {
    prev: u32,
    next: u32,
}

impl Links {
    pub(super) const NONE: Links = Links { prev: NIL, next: NIL };
}

/// A node that can be in a list of kind `L`.
pub(super) trait Linked<const L: u8> {
    fn links(&mut self) -> &mut Links;
}

#[derive(Debug)]
pub(super) struct List<const L: u8> {
    head: u32,
    tail: u32,
    len: u32,
}

impl<const L: u8> List<L> {
    pub(super) const EMPTY: List<L> = List { head: NIL, tail: NIL, len: 0 };

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn front(&self) -> Option<u32> {
        (self.head != NIL).then_some(self.head)
    }

    /// The one behind `id`.
    pub(super) fn after<T: Linked<L>>(nodes: &mut Slab<T>, id: u32) -> Option<u32> {
        let next = nodes[id as usize].links().next;
        (next != NIL).then_some(next)
    }

    /// All of them, from the front.
    pub(super) fn members<T: Linked<L>>(&self, nodes: &mut Slab<T>) -> Vec<u32> {
        std::iter::successors(self.front(), |id| List::<L>::after(nodes, *id)).collect()
    }

    pub(super) fn push_back<T: Linked<L>>(&mut self, nodes: &mut Slab<T>, id: u32) {
        *nodes[id as usize].links() = Links { prev: self.tail, next: NIL };
        match self.tail {
            NIL => self.head = id,
            tail => nodes[tail as usize].links().next = id,
        }
        self.tail = id;
        self.len += 1;
    }

    pub(super) fn push_front<T: Linked<L>>(&mut self, nodes: &mut Slab<T>, id: u32) {
        *nodes[id as usize].links() = Links { prev: NIL, next: self.head };
        match self.head {
            NIL => self.tail = id,
            head => nodes[head as usize].links().prev = id,
        }
        self.head = id;
        self.len += 1;
    }

    pub(super) fn remove<T: Linked<L>>(&mut self, nodes: &mut Slab<T>, id: u32) {
        let Links { prev, next } = std::mem::replace(nodes[id as usize].links(), Links::NONE);
        match prev {
            NIL => self.head = next,
            _ => nodes[prev as usize].links().next = next,
        }
        match next {
            NIL => self.tail = prev,
            _ => nodes[next as usize].links().prev = prev,
        }
        self.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Node(Links);
    impl Linked<0> for Node {
        fn links(&mut self) -> &mut Links {
            &mut self.0
        }
    }

    #[test]
    fn every_node_can_leave() {
        for (gone, left) in [(0, [2, 1]), (1, [2, 0]), (2, [0, 1])] {
            let mut nodes: Slab<Node> = Slab::new();
            let mut list = List::<0>::EMPTY;
            for _ in 0..3 {
                nodes.insert(Node(Links::NONE));
            }
            list.push_back(&mut nodes, 0);
            list.push_back(&mut nodes, 1);
            list.push_front(&mut nodes, 2);
            list.remove(&mut nodes, gone);
            let mut order = Vec::new();
            while let Some(id) = list.front() {
                list.remove(&mut nodes, id);
                order.push(id);
            }
            assert_eq!((order.as_slice(), list.len()), (left.as_slice(), 0));
        }
    }
}
