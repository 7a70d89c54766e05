// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// What a stream needs of a token. One that answers nothing at all, as a few old ones do, cannot be streamed.
interface Token {
    function transfer(address to, uint256 amount) external returns (bool);

    function transferFrom(address from, address to, uint256 amount) external returns (bool);
}

/// Money that flows from a sender to a recipient by the second, out of a deposit.
///
/// For tests: it behaves as the contract that providers are paid by, with its weaknesses. Nothing limits which token
/// is used, a duration is cut to 128 bits, and what is added after the end counts for the time since then.
contract StreamPayment {
    struct Stream {
        // Zero is the chain's own coin.
        address token;
        address sender;
        // Zero for one that was terminated, and for one that never was.
        address recipient;
        uint128 startTime;
        uint128 stopTime;
        uint128 ratePerSecond;
        uint256 deposit;
        uint256 withdrawn;
        bool halted;
    }

    event StreamCreated(
        uint256 indexed streamId,
        address indexed sender,
        address indexed recipient,
        address token,
        uint256 deposit,
        uint256 ratePerSecond,
        uint256 startTime,
        uint256 stopTime
    );
    event Withdraw(uint256 indexed streamId, address indexed recipient, uint256 amount);
    event Terminated(uint256 indexed streamId, uint256 senderRefund, uint256 recipientPayout);
    event Halted(uint256 indexed streamId);
    event ToppedUp(uint256 indexed streamId, uint256 amount, uint128 newStopTime);

    /// Who may halt streams.
    address public immutable oracle;
    uint256 public nextStreamId = 1;
    mapping(uint256 streamId => Stream) public streams;

    constructor(address halts) {
        oracle = halts;
    }

    function createStream(address token, address recipient, uint256 deposit, uint128 ratePerSecond)
        external
        payable
        returns (uint256 streamId)
    {
        require(recipient != address(0), "recipient=0");
        require(deposit > 0, "deposit=0");
        require(ratePerSecond > 0, "rate=0");
        uint256 duration = deposit / ratePerSecond;
        require(duration > 0, "duration=0");
        uint128 startTime = uint128(block.timestamp);
        uint128 stopTime = startTime + uint128(duration);
        take(token, deposit, "value != deposit");

        streamId = nextStreamId++;
        Stream storage stream = streams[streamId];
        stream.token = token;
        stream.sender = msg.sender;
        stream.recipient = recipient;
        stream.startTime = startTime;
        stream.stopTime = stopTime;
        stream.ratePerSecond = ratePerSecond;
        stream.deposit = deposit;
        emit StreamCreated(streamId, msg.sender, recipient, token, deposit, ratePerSecond, startTime, stopTime);
    }

    function topUp(uint256 streamId, uint256 amount) external payable {
        Stream storage stream = existing(streamId);
        require(msg.sender == stream.sender, "not sender");
        require(!stream.halted, "halted");
        uint128 added = uint128(amount / stream.ratePerSecond);
        require(added > 0, "delta=0");
        take(stream.token, amount, "value != amount");

        uint128 from = stream.stopTime;
        if (from < block.timestamp) from = uint128(block.timestamp);
        stream.stopTime = from + added;
        stream.deposit += amount;
        emit ToppedUp(streamId, amount, stream.stopTime);
    }

    function withdraw(uint256 streamId) external {
        Stream storage stream = existing(streamId);
        require(msg.sender == stream.recipient, "not recipient");
        uint256 amount = vested(stream) - stream.withdrawn;
        require(amount > 0, "nothing to withdraw");
        stream.withdrawn += amount;
        give(stream.token, msg.sender, amount, "eth transfer failed");
        emit Withdraw(streamId, msg.sender, amount);
    }

    function terminate(uint256 streamId) external {
        Stream storage stream = existing(streamId);
        (address sender, address recipient) = (stream.sender, stream.recipient);
        require(msg.sender == sender || msg.sender == recipient, "not authorized");
        uint256 earned = vested(stream);
        uint256 payout = earned - stream.withdrawn;
        uint256 refund = stream.deposit - earned;
        stream.recipient = address(0);
        give(stream.token, recipient, payout, "eth payout failed");
        give(stream.token, sender, refund, "eth refund failed");
        emit Terminated(streamId, refund, payout);
    }

    function haltStream(uint256 streamId) external {
        require(msg.sender == oracle, "not oracle");
        Stream storage stream = existing(streamId);
        stream.halted = true;
        if (stream.stopTime > block.timestamp) stream.stopTime = uint128(block.timestamp);
        emit Halted(streamId);
    }

    function existing(uint256 streamId) private view returns (Stream storage stream) {
        stream = streams[streamId];
        require(stream.recipient != address(0), "no-stream");
    }

    /// What the recipient has earned by now, withdrawn or not.
    function vested(Stream storage stream) private view returns (uint256) {
        uint256 until = block.timestamp < stream.stopTime ? block.timestamp : stream.stopTime;
        uint256 earned = (until - stream.startTime) * stream.ratePerSecond;
        return earned < stream.deposit ? earned : stream.deposit;
    }

    /// Coin that comes along with a token stays here for good.
    function take(address token, uint256 amount, string memory mismatch) private {
        if (token == address(0)) {
            require(msg.value == amount, mismatch);
        } else {
            require(Token(token).transferFrom(msg.sender, address(this), amount), "token transfer failed");
        }
    }

    /// Whoever gets coin may use all the gas there is.
    function give(address token, address to, uint256 amount, string memory complaint) private {
        if (amount == 0) return;
        if (token == address(0)) {
            (bool taken,) = to.call{value: amount}("");
            require(taken, complaint);
        } else {
            require(Token(token).transfer(to, amount), "token transfer failed");
        }
    }
}
