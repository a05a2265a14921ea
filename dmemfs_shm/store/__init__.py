"""The engine: one shared store. It knows nothing of users, paths as text, or streams.

Reading order: `layout`, `names`, `segment`, `identity`; `journal`, `mutex`, `recovery`; `rwlock`; `blocks`, `arenas`,
`tree`, `content`, `section`; `namespace`, and beside it `listing`, `placement`, `sweep`, `graft`; `fastpath`, the
ordinary case of all that in a few straight pieces; `attachment` puts them together; `check` knows every invariant.
"""
