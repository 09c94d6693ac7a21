//! The ring layer: the only module that touches tokio-uring, raw opcodes, files and sockets, and the only `unsafe`.
//!
//! CONTRACT (to be kept by whoever fills this in). Files suggested: runtime.rs, buffer.rs, file.rs, tcp.rs,
//! cancel.rs, deadline.rs (wheel), mailbox.rs, check.rs (start-up checks), cpu.rs (pinning, CPU time).
//!
//! ```text
//! // runtime.rs
//! pub struct RuntimeConfig { pub cpu: Option<usize>, pub entries: u32 }
//! pub fn run<F: Future>(config: &RuntimeConfig, main: F) -> io::Result<F::Output>;   // tokio_uring::builder with COOP_TASKRUN|SINGLE_ISSUER
//! pub fn spawn(f: impl Future<Output = ()> + 'static);
//! pub async fn yield_turn();               // resumes after tasks that are ready now have run
//! // buffer.rs: aligned memory, possibly registered with the worker's ring
//! pub struct AlignedBuf;                    // Deref<Target=[u8]> + DerefMut, full length always initialised (zeroed), 4096-aligned
//! pub struct BufferPool; impl BufferPool { pub fn new(count, bytes, register: bool) -> BufferPool (warns once where memlock is too small); pub fn take(&self) -> Option<AlignedBuf>; pub fn give(&self, AlignedBuf); }
//! // file.rs
//! pub struct DirectFile; impl { pub fn open(path, durability: Sync{Data,None}) -> io::Result<Self> (O_DIRECT, + O_DSYNC when Data; open-file-description lock held while requests are in flight);
//!    pub async fn write_at(&self, buf: AlignedBuf, bytes: usize, offset: u64) -> (io::Result<()>, AlignedBuf);  // short write = error
//!    pub async fn read_at(&self, buf: Vec<u8> or AlignedBuf, offset, bytes) -> (io::Result<()>, buf); }   // alignment handled inside
//! pub fn prepare_segment(path, bytes, block) -> io::Result<()>;  // blocking (runs on a helper thread): create, zero-fill, fsync file and directory
//! // tcp.rs
//! pub struct Listener; impl { pub fn bind(addr) -> io::Result<std::net::TcpListener> (SO_REUSEPORT, SO_REUSEADDR, backlog); pub fn from_std(..); pub async fn accept(&self) -> io::Result<(Stream, SocketAddr)>; pub fn close(&self) }
//! pub struct Stream (clone-able handle, Rc); impl {
//!    pub async fn connect(addr, source: Option<IpAddr>, deadline: Deadline) -> io::Result<Stream>;
//!    /// Reads into buf[filled..]; Ok(0) is end of stream; Err(TimedOut) after `wait`. Never leaves a read behind.
//!    pub async fn read(&self, buf: Vec<u8> or ReadBuf, wait: Duration) -> (io::Result<usize>, buf);
//!    pub async fn read_aligned(&self, buf: AlignedBuf, from: usize, wait: Duration) -> (io::Result<usize>, AlignedBuf);
//!    /// Writes all of it or fails.
//!    pub async fn write_all(&self, buf: Vec<u8>, wait: Duration) -> (io::Result<()>, Vec<u8>);
//!    pub fn shutdown(&self);   // both directions: pending operations end
//!    pub async fn close(self); // FIN, descriptor closed, awaited
//! }
//! // mailbox.rs
//! pub fn mailbox<T: Send>(depth: usize) -> (MailboxSender<T>, Mailbox<T>);  // crossbeam bounded + eventfd written only when the receiver may sleep
//! impl MailboxSender<T> { pub fn try_send(&self, T) -> Result<(), T>; }  // clone, Send, Sync; usable from any thread
//! impl Mailbox<T> { pub async fn recv(&mut self) -> Option<T>; pub fn try_recv(&mut self) -> Option<T>; }
//! // deadline.rs
//! one wheel per worker; `sleep(Duration)` for tasks, `Deadline` guards for operations
//! // check.rs
//! pub fn start_up_checks(spool: &Path, …) -> Result<Checked, CheckError>; // io_uring usable, memlock, nofile, file system type (tmpfs), O_DIRECT alignment; each error names the remedy
//! ```
